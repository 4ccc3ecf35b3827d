"""Why a call went the way it did: what happened around it, what was decided then, on what view, and what lost.

The log holds events only. It is folded twice: first to find the steps that concern the call, then with the policies
watched in those steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from nubes.functions.controller import Functions
from nubes.kernel.decisions import Decision, Watched
from nubes.kernel.errors import NotFound
from nubes.kernel.policy import Policy, make
from nubes.replay.chain import Chain, Chains

if TYPE_CHECKING:
    from rich.console import RenderableType

Timed = tuple[float, Any]


class Step(msgspec.Struct):
    """One event of the chain, the commands that followed, and the decisions in between."""

    number: int  # of the record in the log
    at: float
    role: str  # what it has to do with the call
    event: Any
    commands: list[Any]
    decisions: list[Decision]


class Explanation(msgspec.Struct):
    """The chain of one call, in order of time. `verdict` says how it got its instance."""

    call: int
    function: str
    status: str
    verdict: str
    steps: list[Step]

    @property
    def decisions(self) -> list[Decision]:
        return [decision for step in self.steps for decision in step.decisions]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        from nubes.replay.showing import explanation_dict

        return explanation_dict(self)

    def __rich__(self) -> RenderableType:
        from nubes.replay.showing import explanation_text

        return explanation_text(self)


def why(log: Path | Sequence[Timed], call: int) -> Explanation:
    """The explanation of one call, from a data folder or from (time, event) pairs. Raises `NotFound`."""
    return explain(log, [call])[call]


def explain(log: Path | Sequence[Timed], calls: Iterable[int]) -> dict[int, Explanation]:
    """Explanations of many calls: the log is folded twice, however many there are."""
    if isinstance(log, Path):
        from nubes.workloads.recording import events_of

        log = events_of(log)
    chains = Chains(set(calls))
    for number, (now, event) in enumerate(log):
        chains.step(number, now, event)
    missing = chains.wanted - set(chains.of)
    if missing:
        raise NotFound(f"Call {min(missing)} is not in the log.", "See `nubes ps` for the calls there are.")
    concerned = {number for chain in chains.of.values() for number in chain.steps}
    steps = _look(log, concerned)
    return {call: _explanation(call, chains.of[call], steps) for call in chains.wanted}


def _look(log: Sequence[Timed], concerned: set[int]) -> dict[int, Step]:
    """The steps of these numbers with the decisions taken in them."""
    controller = _Looked()
    steps: dict[int, Step] = {}
    for number, (now, event) in enumerate(log):
        controller.looking = number in concerned
        controller.seen = []
        commands = controller.handle(event, now)
        if controller.looking:
            steps[number] = Step(number, now, "", event, commands, controller.seen)
    return steps


def _explanation(call: int, chain: Chain, steps: dict[int, Step]) -> Explanation:
    mine = [msgspec.structs.replace(steps[number], role=role) for number, role in sorted(chain.steps.items())]
    verdict = chain.verdict()
    if not any(step.decisions for step in mine):
        verdict += " No policy was asked anything along the way."
    return Explanation(call, chain.function, chain.status, verdict, mine)


class _Looked(Functions):
    """The same controller, with policies that can be looked at."""

    def __init__(self) -> None:
        self.looking = False
        self.seen: list[Decision] = []
        super().__init__()

    def _make(self, seam: str, policy: str | Policy | None) -> Any:
        return _Looking(make(seam, policy), self)


class _Looking(Watched):
    """Watches a policy's decisions in the steps that are looked at, and costs next to nothing in the others."""

    def __init__(self, policy: Policy, controller: _Looked) -> None:
        super().__init__(policy, lambda decision: controller.seen.append(decision))
        self._controller = controller

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name) if self._controller.looking else getattr(self._policy, name)
