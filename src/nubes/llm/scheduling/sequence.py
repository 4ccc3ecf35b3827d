"""A sequence: one prompt and one answer to it, as the scheduler sees them."""

from __future__ import annotations

from collections.abc import Sequence as Keys
from math import inf
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from nubes.llm.spec import Work

WAITING, PREFILL, DECODE, SWAPPED, MOVING, DONE = "waiting", "prefill", "decode", "swapped", "moving", "done"


class Lane(Protocol):
    """What counts the decode steps that all decoding sequences take together."""

    tick: int


class Sequence:
    """Lengths and blocks of a sequence; its tokens are the engine's.

    `known` tokens are its prompt and what was generated; of these `context` have KV. While it decodes both grow by one
    with every step of its lane, without anybody touching it: that makes a simulated step cost what changes in it.
    """

    __slots__ = (
        "_base", "_known", "adapter", "arrived_s", "blocks", "cached", "first_s", "foreseen", "group", "host", "id",
        "keys", "lane", "limit", "memo", "paused_s", "preemptions", "priority", "prompt", "rank", "registered",
        "segments", "session", "state", "todo", "user", "width", "work",
    )  # fmt: skip

    def __init__(
        self,
        id: int,
        prompt: int,
        limit: int,
        *,
        arrived_s: float = 0.0,
        foreseen: int = 0,
        keys: Keys[object] = (),
        width: int = 1,
        priority: int = 0,
        user: str = "",
        session: str = "",
        adapter: str = "",
        work: Work | None = None,
    ) -> None:
        self.id = id
        self.prompt = prompt
        self.limit = limit  # tokens it may generate
        self.foreseen = foreseen or limit  # tokens it will generate, where somebody knows
        self.arrived_s = arrived_s
        self.keys = keys  # what its full blocks hold, by content: equal keys, equal KV
        self.width = width  # answers to the one prompt: it forks into as many when the prompt is done
        self.priority = priority
        self.user = user
        self.session = session
        self.adapter = adapter
        self.work = work  # what it is to the program it is part of
        self.group = id  # of the sequence it was forked from
        self.state = WAITING
        self.rank: tuple[float, ...] = ()  # place in the queue
        self.first_s = inf  # when its first token came
        self.blocks: list[int] = []
        self.host: list[int] = []  # where its blocks are while it is swapped out
        self.segments: list[tuple[int, int]] = []  # of its tokens, those that wait for their KV
        self.todo = 0  # their sum
        self.cached = 0  # tokens whose KV was found when it was admitted first
        self.registered = 0  # full blocks others can find
        self.preemptions = 0
        self.paused_s = inf  # when it gave way last
        self.memo: tuple[int, int, list[int | None]] | None = None  # what the cache held for it, and when
        self.lane: Lane | None = None
        self._base = 0
        self._known = prompt

    @property
    def context(self) -> int:
        lane = self.lane
        return self._base if lane is None else self._base + lane.tick

    @property
    def known(self) -> int:
        lane = self.lane
        return self._known if lane is None else self._base + lane.tick + 1

    @property
    def generated(self) -> int:
        return self.known - self.prompt

    def join(self, lane: Lane) -> None:
        """Decodes from now on: all its known tokens but the last have KV."""
        self.state = DECODE
        self.lane = lane
        self._base = self._known - 1 - lane.tick

    def leave(self, state: str) -> None:
        """Decodes no longer; what it had it keeps."""
        lane, self.state = self.lane, state
        if lane is not None:
            self._base += lane.tick
            self._known = self._base + 1
            self.lane = None

    def advance(self, tokens: int) -> None:
        """`tokens` more than others were accepted in this step."""
        self._base += tokens

    def take(self, rows: int) -> tuple[int, int]:
        """The next rows that wait for KV, at most so many, and without a gap: (start, end)."""
        start, end = self.segments[0]
        cut = min(end, start + rows)
        if cut == end:
            del self.segments[0]
        else:
            self.segments[0] = (cut, end)
        self.todo -= cut - start
        return start, cut

    def computed(self, end: int) -> None:
        """Tokens before `end` have KV."""
        self._base = end

    def again(self) -> Sequence:
        """The same request for another engine: as far as it came, and without KV."""
        other = Sequence(
            self.id, self.prompt, self.limit, arrived_s=self.arrived_s, foreseen=self.foreseen, keys=self.keys,
            width=self.width, priority=self.priority, user=self.user, session=self.session, adapter=self.adapter,
            work=self.work,
        )  # fmt: skip
        other.resume(self.known)
        other.first_s, other.paused_s, other.preemptions = self.first_s, self.paused_s, self.preemptions
        other.cached = self.cached
        return other

    def resume(self, known: int) -> None:
        """It has so many tokens already, from another engine."""
        self._known = known

    def emit(self) -> None:
        """A token was generated outside of a decode: the one after the prompt."""
        self._known += 1

    def reset(self, context: int = 0) -> None:
        """Its KV is gone, but for `context` tokens."""
        self._base = context
        self.blocks = []
        self.registered = 0
        self.segments = []
        self.todo = 0
