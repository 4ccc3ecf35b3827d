"""S-LoRA: batches of many adapters, admitted so that memory lasts to their ends; early abort under overload."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from typing import ClassVar

from nubes.kernel.policy import Paper, policy
from nubes.llm.scheduling.sequence import Sequence
from nubes.llm.scheduling.state import State
from nubes.llm.seams import Batch, Batching, Ordering

PAPER = Paper("s-lora", "S-LoRA", "S-LoRA: Scalable Serving of Thousands of LoRA Adapters", "MLSys 2024")

SKIPPED = 64  # waiting requests that are passed over before the rest is left for the next step


def need(batch: Iterable[tuple[int, int]]) -> int:
    """The most tokens that (remaining, current) sequences ever hold together, if each ends when nothing remains.

    `batch` is in descending order of what remains: just before the k-th ends, k of them have grown by as much.
    """
    most = total = 0
    for count, (remaining, current) in enumerate(batch, 1):
        total += current
        most = max(most, remaining * count + total)
    return most


@policy("s-lora", paper=PAPER)
class SLora(Batching):
    """Whole prompts of those whose KV and adapters will fit until they end, beside one token of every running sequence.

    At most `max_seqs` run, and prompts have `budget` rows a step. With `distinct` there are at most so many adapters in
    a batch, and waiting requests for these go first: faster steps, while others may wait for long.
    """

    def __init__(self, max_seqs: int = 256, budget: int = 2560, distinct: int = 0) -> None:
        self.max_seqs = max_seqs
        self.budget = budget
        self.distinct = distinct

    def compose(self, state: State, now: float) -> Batch:
        prompts = [(sequence, sequence.todo) for sequence in state.prefilling.values()]
        if not state.waiting or state.swapped:
            return Batch(True, prompts)
        size, adapters, running = state.block_size, state.adapters, state.running
        batch: list[tuple[int, int]] = []
        for sequence in (*state.decoding.values(), *state.prefilling.values()):
            _join(batch, sequence, size)
        names = set(adapters.held)
        pages = adapters.blocks
        rows, free, skipped = sum(rows for _, rows in prompts), state.free_blocks - state.growth, 0
        waiting: Iterable[Sequence] = state.waiting
        if self.distinct and len(names) >= self.distinct:
            waiting = sorted(state.waiting, key=lambda s: s.adapter not in names)
        for sequence in waiting:
            name, weight = sequence.adapter, adapters.size(sequence.adapter)
            new = weight > 0 and name not in names
            if (new and self.distinct and len(names) >= self.distinct) or not adapters.ready(name):
                skipped += 1
                if skipped > SKIPPED:
                    break
                continue
            take, more = state.need(sequence, sequence.known), state.rows(sequence)
            with_it = list(batch)
            _join(with_it, sequence, size)
            lasts = need(with_it) <= (state.pool.size - pages - (weight if new else 0)) * size
            if running + sequence.width > self.max_seqs or take > free or (rows and rows + more > self.budget):
                break
            if not lasts and running:
                break
            batch, rows, free = with_it, rows + more, free - take
            running += sequence.width
            if new:
                names.add(name)
                pages += weight
            prompts.append((sequence, more))
        return Batch(True, prompts)


def _join(batch: list[tuple[int, int]], sequence: Sequence, block_size: int) -> None:
    """With what it remains and holds, its last block counted as full."""
    remaining = max(1, sequence.foreseen - sequence.generated)
    for _ in range(sequence.width):
        insort(batch, (remaining, sequence.known + block_size - 1), key=lambda entry: -entry[0])


@policy("one-adapter", paper=PAPER)
class OneAdapter(Batching):
    """Requests of one adapter at a time, that of the first in line: what S-LoRA is compared with (PEFT)."""

    def __init__(self, max_seqs: int = 256) -> None:
        self.max_seqs = max_seqs

    def compose(self, state: State, now: float) -> Batch:
        prompts = [(sequence, sequence.todo) for sequence in state.prefilling.values()]
        current = next((s.adapter for s in (*state.decoding.values(), *state.prefilling.values())), None)
        running, free = state.running, state.free_blocks - state.growth
        if state.swapped:
            return Batch(True, prompts)
        for sequence in state.waiting:
            if current is None:
                current = sequence.adapter
            if sequence.adapter != current:
                continue
            take = state.need(sequence, self.reserve(sequence))
            if running + sequence.width > self.max_seqs or take > free:
                break
            prompts.append((sequence, state.rows(sequence)))
            running += sequence.width
            free -= take
        return Batch(True, prompts)


@policy("early-abort", paper=PAPER)
class EarlyAbort(Ordering):
    """Refuses who cannot have its first token within `slo` seconds any more, `spare` of which a first step takes.

    While more requests come than are admitted, the newest goes first: those that wait already are lost more often.
    Both are moving averages over intervals of `period` seconds.
    """

    dynamic: ClassVar[bool] = True

    def __init__(self, slo: float = 6.0, spare: float = 0.5, period: float = 1.0) -> None:
        self.slo_s = slo
        self.spare_s = spare
        self.period_s = period
        self.arrivals = self.admissions = 0.0  # moving averages
        self._came = self._went = self._before = 0
        self._last_s = self._since_s = float("-inf")

    @property
    def newest(self) -> bool:
        return self.arrivals > self.admissions

    def rank(self, sequence: Sequence, now: float) -> tuple[float, ...]:
        return (-sequence.arrived_s if self.newest else sequence.arrived_s,)

    def sheds(self, state: State, now: float) -> list[Sequence]:
        came = sum(1 for sequence in state.waiting if sequence.arrived_s > self._last_s)
        self._came += came
        self._went += self._before + came - len(state.waiting)
        self._last_s = now
        if now - self._since_s >= self.period_s:
            self.arrivals = 0.7 * self.arrivals + 0.3 * self._came
            self.admissions = 0.7 * self.admissions + 0.3 * self._went
            self._came = self._went = 0
            self._since_s = now
        late = [s for s in state.waiting if s.first_s > now and now - s.arrived_s + self.spare_s > self.slo_s]
        self._before = len(state.waiting) - len(late)
        return late
