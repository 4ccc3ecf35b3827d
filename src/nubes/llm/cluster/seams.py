"""The seams of a fleet of engines, and what their policies see."""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import ClassVar, Literal

import msgspec

from nubes.kernel.policy import Policy, decision, seam
from nubes.llm.cluster.member import Member
from nubes.llm.spec import Work

Way = Literal["live", "copy", "recompute", "tokens"]


class Ask(msgspec.Struct, gc=False):
    """A request, as far as where it goes depends on it. `known` is more than `prompt` if it was served before."""

    id: int
    prompt: int
    known: int
    limit: int
    priority: int = 0
    user: str = ""
    session: str = ""
    adapter: str = ""
    work: Work | None = None
    losses: int = 0  # engines that were lost with it


class Move(msgspec.Struct, frozen=True):
    """A running sequence is to decode elsewhere. `way`: live in stages, by a blocking copy, computed again, or its
    tokens computed there while it runs on here.
    """

    id: int
    source: int
    target: int
    way: Way = "live"


@seam("routing", default="llumnix")
class Routing(Policy):
    """Which engine gets a request."""

    passes: ClassVar[bool] = False  # whether those behind one that waits may go before it

    @decision
    def choose(self, ask: Ask, members: Many[Member], now: float) -> Member | None:
        """One of those that may have it; None: it waits until something changes, and those behind it too."""
        raise NotImplementedError

    def line(self, asks: Many[Ask], members: Many[Member], now: float) -> Many[Ask]:
        """Where others may pass: those that wait, in the order in which they are chosen for."""
        return asks

    @decision
    def decoder(self, ask: Ask, members: Many[Member], now: float) -> Member:
        """Where prompts and answers are made apart: who decodes what another has computed the prompt of."""
        return min(members, key=lambda m: (m.load + m.receiving, m.number))


@seam("migration", default="none")
class Migration(Policy):
    """Which running sequences go where. Asked every `period_s`."""

    period_s: float = 0.0  # 0: never
    last_blocks: int = 16  # so few are left: the sequence stops for them
    stages: int = 3  # more than these, and it is given up
    gap: int = 20  # of moving by tokens: so few are left to compute

    @decision
    def moves(self, members: Many[Member], now: float) -> list[Move]:
        """Sequences of `Report.sequences`. Members that send or receive already are busy with that."""
        raise NotImplementedError


@seam("scaling", default="fixed")
class Scaling(Policy):
    """How many engines there are. Asked every `period_s`."""

    period_s: float = 0.0  # 0: never
    most: int = 0  # engines there may be; 0: as many as were declared

    @decision
    def change(self, members: Many[Member], starting: int, now: float) -> int:
        """+1: start one, -1: drain one, 0: as it is. `members` do not drain; `starting` are on their way."""
        raise NotImplementedError

    def spare(self, members: Many[Member]) -> Member:
        """Which one is drained."""
        return min(members, key=lambda m: (m.load, -m.number))
