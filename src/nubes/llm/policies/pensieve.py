"""Pensieve: KV of conversations stays until their next turn, and what is cheap to compute again goes first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from heapq import nsmallest
from itertools import islice
from typing import TYPE_CHECKING, ClassVar

from nubes.kernel.errors import UsageError
from nubes.kernel.policy import Paper, policy
from nubes.llm.scheduling.load import Load, StepModel
from nubes.llm.seams import Retention

if TYPE_CHECKING:
    from nubes.llm.scheduling.blocks import Idle
    from nubes.llm.scheduling.state import State

PAPER = Paper(
    "pensieve", "Pensieve", "Stateful Large Language Model Serving with Pensieve", "EuroSys 2025"
)  # fmt: skip
ORDERS = ("value", "lru", "conversation")
LONGEST = 1 << 17  # tokens of context that are profiled
BUSY = 512  # rows of the step that a profiled chunk is part of


@policy("pensieve", paper=PAPER)
class Pensieve(Retention):
    """What has the lowest value goes first: seconds to compute a chunk again, by those since it was used.

    A chunk costs more the later it stands in its context, since it attends to more: so of one conversation the
    beginning goes first, and when it comes back only that is computed again. While less than `low` of the device's
    memory can be had at once, `batch` blocks a step are copied to host memory. `profile` are (context, seconds to
    compute a chunk that ends there), ascending; without one, a token costs twice as much at a context of `balance` as
    at the beginning.
    `by` is `value`, or to compare: `lru` (unused for longest first, of a conversation its end) or
    `conversation` (the same, and always whole ones).
    """

    shares: ClassVar[bool] = True
    gaps: ClassVar[bool] = True
    tiered: ClassVar[bool] = True

    def __init__(
        self, by: str = "value", chunk: int = 32, low: float = 0.25, batch: int = 32, balance: int = 4096,
        profile: Sequence[tuple[int, float]] = (),
    ) -> None:  # fmt: skip
        if by not in ORDERS:
            raise UsageError(f"{by!r} is no order of eviction.", f"There are: {', '.join(ORDERS)}.")
        if chunk < 1 or balance < 1 or not 0 <= low <= 1:
            raise UsageError("A chunk and balance are at least 1 token, and low is a share.", "Leave them out.")
        self.by = by
        self.chunk = chunk
        self.low = low
        self.batch = batch
        self.profile = tuple(profile) or ((0, 1.0), (balance, 2.0))
        self._costs: list[float] = []

    def victims(self, idle: Mapping[int, Idle], count: int, now: float) -> Iterable[int]:
        return self._first(idle.values(), count, now)

    def copies(self, state: State, now: float) -> Iterable[int]:
        pool, copied = state.pool, state.copied
        missing = int(self.low * pool.size) - len(pool.free) - len(copied)
        if missing <= 0 or len(pool.idle) == len(copied):
            return ()
        others = (idle for block, idle in pool.idle.items() if block not in copied)
        return islice(self._first(others, min(missing, self.batch), now), self.batch)

    def _first(self, idle: Iterable[Idle], count: int, now: float) -> list[int]:
        """Those that go first. Not by value, they come in the order in which they fell idle."""
        if self.by == "lru":
            return [each.block for each in islice(idle, count)]
        if self.by == "conversation":
            return _conversations(idle, count)
        cost, chunk = self._cost, self.chunk
        order = nsmallest(
            count, ((cost(-(-i.depth // chunk)) / (now - i.since_s + 1e-9), i.depth, i.block) for i in idle)
        )
        return [block for _, _, block in order]

    def _cost(self, chunks: int) -> float:
        """Seconds to compute the last of `chunks` again."""
        costs = self._costs
        while len(costs) <= chunks:
            costs.append(interpolate(self.profile, len(costs) * self.chunk))
        return costs[chunks]


def _conversations(idle: Iterable[Idle], count: int) -> list[int]:
    """Whole conversations, the one unused for longest first, until they are `count` blocks or more."""
    of: dict[str, list[Idle]] = {}
    for each in idle:
        of.setdefault(each.session, []).append(each)
    chosen: list[int] = []
    for blocks in sorted(of.values(), key=lambda blocks: max(each.since_s for each in blocks)):
        if len(chosen) >= count:
            break
        chosen += [each.block for each in blocks]
    return chosen


def interpolate(profile: Sequence[tuple[int, float]], context: int) -> float:
    """Linear between the points of an ascending profile, and beyond its ends."""
    if len(profile) == 1:
        return profile[0][1]
    at = next((n for n in range(1, len(profile) - 1) if profile[n][0] >= context), len(profile) - 1)
    (left, low), (right, high) = profile[at - 1], profile[at]
    return low + (high - low) * (context - left) / (right - left)


def profiled(model: StepModel, chunk: int = 32, longest: int = LONGEST) -> tuple[tuple[int, float], ...]:
    """Seconds that a chunk adds to a step, by the context at its end: powers of two from `chunk` to `longest`."""
    base = model.seconds(Load.of([(BUSY, 0)]))
    points = []
    context = chunk
    while context <= longest:
        points.append((context, model.seconds(Load.of([(BUSY, 0), (chunk, context - chunk)])) - base))
        context *= 2
    return tuple(points)
