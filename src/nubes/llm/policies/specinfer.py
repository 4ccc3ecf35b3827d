"""SpecInfer: trees of guessed tokens, as large as measured times and hits say that it pays."""

from __future__ import annotations

from collections.abc import Sequence as Many

from nubes.kernel.errors import UsageError
from nubes.kernel.policy import Paper, policy
from nubes.llm.scheduling.load import Load
from nubes.llm.scheduling.state import State
from nubes.llm.seams import Draft, Speculation
from nubes.llm.speculative.ngrams import Ngrams
from nubes.llm.speculative.planner import Hits, Times, best, size
from nubes.llm.speculative.tree import MOST

PAPER = Paper(
    "specinfer",
    "SpecInfer",
    "SpecInfer: Accelerating Large Language Model Serving with Tree-based Speculative Inference and Verification",
    "ASPLOS 2024",
)
AGAIN = 16  # steps until widths are chosen anew for the same batch
PROBE = 64  # steps of one kind until one of the other is tried: both ways' times stay known


@policy("off")
class Off(Speculation):
    """Nothing is guessed."""


@policy("specinfer", paper=PAPER)
class TokenTrees(Speculation):
    """Trees of the widths that give the most tokens per second by the engine's own step times; none if none pays.

    `depth`, `width` and `nodes` bound them. `widths`, e.g. `1x1x3x1x1x1x1x1`, takes that tree always instead. Guesses
    are what followed the last `longest` to `shortest` tokens before. Steps with prompts in them carry no guesses.
    """

    def __init__(
        self, depth: int = 8, width: int = 3, nodes: int = 24, widths: str = "", longest: int = 4, shortest: int = 2
    ) -> None:
        if not (1 <= depth <= nodes <= MOST and 1 <= width <= nodes and 1 <= shortest <= longest):
            raise UsageError(
                f"There is no tree of depth {depth} and width {width} with {nodes} nodes.",
                f"Allow 1 to {MOST} nodes, at least as many as it is deep and wide, and 1 <= shortest <= longest.",
            )
        self.fixed = _widths(widths) if widths else ()
        self.depth, self.width, self.nodes = depth, width, nodes
        self.longest, self.shortest = longest, shortest
        self.times = Times()
        self.hits = Hits(depth, width)
        self._chosen: dict[int, tuple[int, tuple[int, ...]]] = {}  # batch -> (age in steps, widths)
        self._alike = 0  # steps since one of the other kind
        self._guessed = False  # whether the last one was with guesses

    def widths(self, state: State, load: Load) -> tuple[int, ...]:
        if load.prefills:
            return ()
        if self.fixed:
            return self.fixed
        batch = len(state.decoding)
        if not self.times.knows(batch):
            return ()
        age, widths = self._chosen.get(batch, (AGAIN, ()))
        if age >= AGAIN:
            age = 0
            rates = self.hits.rates
            widths = best(batch, rates, self.times.seconds, self.depth, self.width, self.nodes)
        self._chosen[batch] = age + 1, widths
        if self._alike < PROBE:
            return widths
        return () if widths else (1,) * min(4, self.depth)

    def draft(self) -> Draft:
        return Ngrams(self.longest, self.shortest)

    def verified(self, path: Many[tuple[int, int]]) -> None:
        self.hits.verified(path)

    def ran(self, load: Load, seconds: float) -> None:
        if load.prefills or not load.decodes:
            return
        if not self.times.knows(load.decodes):
            self._chosen.clear()
        self.times.ran(load.decodes, seconds)
        guessed = load.guesses > 0
        self._alike = self._alike + 1 if guessed == self._guessed else 0
        self._guessed = guessed


@policy("sequence", paper=PAPER)
class Chain(TokenTrees):
    """One guess after the other, without alternatives; as many as pay by the engine's own step times.

    With `fixed` always `depth` of them.
    """

    def __init__(self, depth: int = 8, fixed: bool = False, longest: int = 4, shortest: int = 2) -> None:
        super().__init__(depth, 1, max(depth, 1), "x".join("1" * depth) if fixed else "", longest, shortest)


def _widths(text: str) -> tuple[int, ...]:
    parts = text.split("x")
    if not all(part.isdigit() and int(part) for part in parts) or size([int(part) for part in parts]) > MOST:
        raise UsageError(
            f"{text!r} is no tree.", f"Write widths by depth, as in 1x1x3x1, with at most {MOST} nodes in all."
        )
    return tuple(int(part) for part in parts)
