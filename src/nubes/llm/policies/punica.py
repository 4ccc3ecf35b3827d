"""Punica: requests packed onto few engines, so that others may go."""

from __future__ import annotations

from collections.abc import Sequence as Many

from nubes.kernel.policy import Paper, policy
from nubes.llm.cluster.member import Member
from nubes.llm.cluster.seams import Ask, Migration, Move, Routing, Scaling
from nubes.llm.scheduling.state import State
from nubes.llm.seams import Batch, Batching

PAPER = Paper("punica", "Punica", "Punica: Multi-Tenant LoRA Serving", "MLSys 2024")


def room(member: Member, most: int, tokens: int) -> bool:
    """Whether one more request of so many tokens fits the batch and the memory, those that wait there counted."""
    said = member.report
    return member.load < most and -(-tokens // said.block_size) < said.free - said.queued_blocks


@policy("punica", paper=PAPER)
class OnePrompt(Batching):
    """One whole prompt beside one token of every running sequence, whatever their adapters; at most `max_seqs` run."""

    def __init__(self, max_seqs: int = 32) -> None:
        self.max_seqs = max_seqs

    def compose(self, state: State, now: float) -> Batch:
        prompts = [(sequence, sequence.todo) for sequence in state.prefilling.values()]
        if not prompts and state.waiting and not state.swapped:
            first = state.waiting[0]
            room = state.need(first, self.reserve(first)) <= state.free_blocks - state.growth
            if room and state.running + first.width <= self.max_seqs:
                prompts.append((first, state.rows(first)))
        return Batch(True, prompts)


@policy("punica", paper=PAPER)
class LargestBatch(Routing):
    """The engine with the largest batch that has room, the highest number among equals; without one it waits."""

    def __init__(self, most: int = 32) -> None:
        self.most = most

    def choose(self, ask: Ask, members: Many[Member], now: float) -> Member | None:
        able = [m for m in members if room(m, self.most, ask.known)]
        if not able and all(m.load == 0 for m in members):
            able = list(members)  # larger than any has room for: an engine says so better
        return max(able, key=lambda m: (m.load, m.number), default=None)


@policy("punica", paper=PAPER)
class Consolidate(Migration):
    """From the engine with the smallest batch to those with the largest that have room; KV is computed again.

    Every `period` seconds, one engine that is at most half full, if all of it fits elsewhere.
    """

    def __init__(self, most: int = 32, period: float = 10.0) -> None:
        self.most = most
        self.period_s = period

    def moves(self, members: Many[Member], now: float) -> list[Move]:
        busy = sorted((m for m in members if m.load), key=lambda m: (m.load, m.number))
        if len(busy) < 2 or busy[0].load > self.most // 2 or busy[0].report.waiting or busy[0].sending:
            return []
        source, others = busy[0], busy[:0:-1]
        slots = {m.number: self.most - m.load for m in others if not m.draining}
        free = {m.number: m.report.free - m.report.queued_blocks for m in others}
        moves = []
        for leaving in source.report.sequences:
            target = next((n for n, left in slots.items() if left > 0 and free[n] > 2 * leaving.blocks), None)
            if target is None:
                return []
            slots[target] -= 1
            free[target] -= 2 * leaving.blocks
            moves.append(Move(leaving.id, source.number, target, "recompute"))
        return moves


@policy("punica", paper=PAPER)
class LightlyLoaded(Scaling):
    """One more engine when none is lightly loaded (less than `light` of a full batch), one less if several are idle."""

    def __init__(
        self, most: int = 32, light: float = 0.75, period: float = 5.0, least: int = 1, limit: int = 16
    ) -> None:
        self.most = most
        self.light = light
        self.period_s = period
        self.least = least
        self.limit = limit

    def change(self, members: Many[Member], starting: int, now: float) -> int:
        lightly = sum(1 for m in members if m.load < self.light * self.most)
        if not lightly and not starting:
            return 1 if len(members) < self.limit else 0
        idle = sum(1 for m in members if not m.load)
        return -1 if idle and lightly > 1 and len(members) > self.least else 0
