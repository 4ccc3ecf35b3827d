"""KV memory in blocks: reference counts, sharing by content, and what is kept for those who may come back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence


class Idle:
    """A block nobody uses, kept for what it holds. `depth`: tokens up to its end; `session`: whose it was."""

    __slots__ = ("block", "depth", "key", "session", "since_s")

    def __init__(self, block: int, key: object, depth: int, session: str, since_s: float) -> None:
        self.block = block
        self.key = key
        self.depth = depth
        self.session = session
        self.since_s = since_s


Victims = Callable[[dict[int, Idle], int], Iterable[int]]


def oldest(idle: dict[int, Idle], count: int) -> list[int]:
    """The ones that fell idle first."""
    return [block for block, _ in zip(idle, range(count), strict=False)]


class BlockPool:
    """`size` blocks of `block_size` tokens. A block is free, idle (kept by its key), or used by one sequence or more.

    From: Efficient Memory Management for Large Language Model Serving with PagedAttention (SOSP 2023).
    """

    def __init__(self, size: int, block_size: int) -> None:
        self.size = size
        self.block_size = block_size
        self.free = list(range(size - 1, -1, -1))  # a stack: the block freed last is warm in the caches
        self.idle: dict[int, Idle] = {}  # in the order in which they fell idle
        self.shared: dict[int, int] = {}  # block -> references, of those that have more than one
        self.index: dict[object, int] = {}  # key -> block
        self.keys: dict[int, object] = {}  # block -> key
        self.version = 0  # changes with what the index holds

    @property
    def available(self) -> int:
        """Blocks that can be had: free ones, and idle ones whose content is dropped then."""
        return len(self.free) + len(self.idle)

    @property
    def used(self) -> int:
        return self.size - len(self.free) - len(self.idle)

    def take(self, count: int, victims: Victims = oldest) -> list[int]:
        """`count` blocks with one reference each; `count` is at most `available`."""
        free = self.free
        if count > len(free):
            for block in list(victims(self.idle, count - len(free))):
                self.drop(block)
        if count <= 0:
            return []
        taken = free[-count:]
        del free[-count:]
        taken.reverse()
        return taken

    def drop(self, block: int) -> None:
        """Forgets what an idle block holds."""
        del self.idle[block]
        del self.index[self.keys.pop(block)]
        self.version += 1
        self.free.append(block)

    def find(self, keys: Sequence[object], gaps: bool = False) -> list[int | None]:
        """The blocks that hold `keys`: up to the first that is missing, or with `gaps` None in the place of each."""
        if not self.index:
            return []
        get = self.index.get
        found: list[int | None] = []
        for key in keys:
            block = get(key)
            if block is None and not gaps:
                break
            found.append(block)
        return found

    def hold(self, block: int) -> None:
        """One more reference to a block that is used or idle."""
        if self.idle.pop(block, None) is None:
            self.shared[block] = self.shared.get(block, 1) + 1

    def register(self, block: int, key: object) -> None:
        """Others may find `block` by `key` from now on. If another block has that key, nothing changes."""
        if key not in self.index and block not in self.keys:
            self.index[key] = block
            self.keys[block] = key
            self.version += 1

    def release(self, blocks: list[int], session: str = "", now: float = 0.0) -> None:
        """Gives one reference to each back, those of the end first: their content is worth least to others."""
        if not self.keys and not self.shared:
            self.free.extend(reversed(blocks))
            return
        for at in range(len(blocks) - 1, -1, -1):
            block = blocks[at]
            references = self.shared.get(block)
            if references is not None:
                if references == 2:
                    del self.shared[block]
                else:
                    self.shared[block] = references - 1
                continue
            key = self.keys.get(block)
            if key is None:
                self.free.append(block)
            else:
                self.idle[block] = Idle(block, key, (at + 1) * self.block_size, session, now)

    def keep(self, block: int, of: Idle) -> None:
        """A block that was taken is idle and holds from now on what `of` does in another pool."""
        self.register(block, of.key)
        self.idle[block] = Idle(block, of.key, of.depth, of.session, of.since_s)

    def references(self, block: int) -> int:
        """How many sequences use a block."""
        if block in self.shared:
            return self.shared[block]
        return 0 if block in self.idle or block in self.free else 1
