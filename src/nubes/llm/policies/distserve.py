"""DistServe: prompts and answers on engines of their own, so that neither waits for the other."""

from __future__ import annotations

from collections.abc import Sequence as Many

from nubes.kernel.policy import Paper, policy
from nubes.llm.cluster.member import Member
from nubes.llm.cluster.seams import Ask, Routing

PAPER = Paper(
    "distserve",
    "DistServe",
    "DistServe: Disaggregating Prefill and Decoding for Goodput-optimized Large Language Model Serving",
    "OSDI 2024",
)


@policy("distserve", paper=PAPER)
class Shortest(Routing):
    """A prompt goes where the fewest tokens wait for their KV; its answer is made where the fewest requests are."""

    def choose(self, ask: Ask, members: Many[Member], now: float) -> Member | None:
        return min(members, key=lambda m: (m.report.tokens, m.load, m.number))
