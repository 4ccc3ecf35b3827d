"""The seams of an LLM engine, and what their policies see.

Policies look at a `State` (and the sequences in it) and change nothing there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Many
from typing import TYPE_CHECKING, ClassVar, Protocol

from nubes.kernel.policy import Policy, decision, seam

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nubes.llm.cache.restoration import Costs, Plan
    from nubes.llm.scheduling.blocks import Idle
    from nubes.llm.scheduling.load import Load
    from nubes.llm.scheduling.sequence import Sequence
    from nubes.llm.scheduling.state import State
    from nubes.llm.scheduling.step import Step
    from nubes.llm.speculative.tree import Tree


class Batch:
    """What one iteration shall hold: whether all decodes take part, and rows of prompts.

    `prompts` are (sequence, rows) of sequences that have begun their prompt, and of waiting ones, which are admitted.
    """

    __slots__ = ("decode", "prompts")

    def __init__(self, decode: bool, prompts: list[tuple[Sequence, int]]) -> None:
        self.decode = decode
        self.prompts = prompts


@seam("batching", default="sarathi(budget=256)")
class Batching(Policy):
    """Which rows go into the next iteration, and how much KV memory a sequence gets when it is admitted."""

    @decision
    def compose(self, state: State, now: float) -> Batch:
        """The next iteration. A prompt that does not fit (`state.need`) must not be admitted."""
        raise NotImplementedError

    def reserve(self, sequence: Sequence) -> int:
        """Tokens an admitted sequence gets room for; it grows by blocks beyond that."""
        return sequence.known

    def passes(self, step: Step, state: State) -> list[Load]:
        """What an engine of this kind runs through its model for a step, one after the other, padding included."""
        return [step.load]


@seam("ordering", default="fcfs")
class Ordering(Policy):
    """Which waiting request goes first, and what is refused when there is too much of it."""

    dynamic: ClassVar[bool] = False  # whether ranks change while requests wait

    @decision
    def rank(self, sequence: Sequence, now: float) -> tuple[float, ...]:
        """The smallest goes first. Asked once, when a request arrives; if they change, before every step."""
        return (sequence.arrived_s,)

    @decision
    def sheds(self, state: State, now: float) -> list[Sequence]:
        """Waiting requests to refuse now, with an error that says so."""
        return []

    def admitted(self, sequence: Sequence, now: float) -> None:
        """A request waits no longer; again if it had given way."""

    def finished(self, sequence: Sequence, now: float) -> None:
        """A request ended."""


@seam("preemption", default="recompute")
class Preemption(Policy):
    """Who gives way when KV memory is out, and how it comes back."""

    swapping: ClassVar[bool] = False  # whether KV may go to host memory

    @decision
    def victim(self, state: State, now: float) -> Sequence:
        """One of the running sequences; all of its group go with it."""
        return max((*state.decoding.values(), *state.prefilling.values()), key=lambda s: (s.rank, s.id))

    @decision
    def swaps(self, sequence: Sequence, state: State) -> bool:
        """Whether its KV goes to host memory, if there is room, instead of being computed again."""
        return False


@seam("retention", default="lru")
class Retention(Policy):
    """Which KV nobody uses is dropped first when memory is wanted for something else."""

    shares: ClassVar[bool] = True  # whether KV is kept for others at all
    gaps: ClassVar[bool] = False  # whether KV is of use when some before it is gone: what is missing is computed again
    tiered: ClassVar[bool] = False  # whether what nobody uses is kept in host memory, too, where there is some

    @decision
    def victims(self, idle: Mapping[int, Idle], count: int, now: float) -> Iterable[int]:
        """`count` of the idle blocks, or more; they stand in the order in which they fell idle.

        With `tiered` it is also asked for those in host memory, in the order in which they came there.
        """
        return [block for block, _ in zip(idle, range(count), strict=False)]

    @decision
    def copies(self, state: State, now: float) -> Iterable[int]:
        """Idle blocks to copy to host memory now. They stay where they are, until somebody wants their place."""
        return ()


@seam("restoration", default="tokens")
class Restoration(Policy):
    """How KV that was dropped comes back: what is stored of each layer, and what is computed from it."""

    @decision
    def plan(self, layers: int, costs: Costs) -> Plan:
        """From which kind of state each layer comes back. The same plan says what of it to store."""
        raise NotImplementedError


@seam("fusion", default="exact")
class Fusion(Policy):
    """How much of a prompt is computed that is put together from texts whose KV is there, each computed alone."""

    filters: ClassVar[tuple[float, ...]] = (1.0,)  # rows kept after each check layer, as multiples of the share

    @decision
    def share(self, prefill_s: float, load_s: float) -> float:
        """The share of the texts' tokens to compute. `prefill_s`: to compute all; `load_s`: to load their KV."""
        raise NotImplementedError

    @decision
    def select(self, deviation: NDArray[np.float32], count: int) -> NDArray[np.intp]:
        """`count` of the texts' tokens, by how far each one's values are from those that were stored."""
        raise NotImplementedError


class Draft(Protocol):
    """What guesses the continuation of one sequence."""

    def draft(self, text: Many[int], widths: Many[int]) -> Tree:
        """Up to `widths[i]` guesses after each guess at depth i - 1. `text` is that of the last call, and more."""
        ...


@seam("speculation", default="off")
class Speculation(Policy):
    """How many tokens are guessed ahead of each answer, to be verified in one step, and by what.

    It learns from what came of its guesses.
    """

    @decision
    def widths(self, state: State, load: Load) -> tuple[int, ...]:
        """For each decoding sequence, how many guesses after each one, by depth; () for none.

        `load` is that of the step so far, which decodes.
        """
        return ()

    def draft(self) -> Draft | None:
        """What guesses for one sequence; None if nothing ever does."""
        return None

    def verified(self, path: Many[tuple[int, int]]) -> None:
        """By depth, of one sequence: how many guesses stood beside each other, and which held, or -1."""

    def ran(self, load: Load, seconds: float) -> None:
        """A step took so long, guessing and choosing tokens included."""
