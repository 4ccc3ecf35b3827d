"""The scheduler of one engine: a state machine that says what the next step holds, and is told what came of it.

It does no I/O. Whoever drives it, an engine with a real model or a simulator with a step-time model, does this:

    scheduler.arrive(sequence, now)       whenever a request comes
    step = scheduler.compose(now)         what to run now; None if there is nothing to do
    scheduler.complete(step, now)         when it ran
    scheduler.finish(sequence, now)       for each that got its last token in it

What it does to memory is in `memory`; `moving` takes sequences from one scheduler to another, `speculative.slots` adds
guesses of tokens to a step, and `lora.batch` adapters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

from nubes.kernel.policy import make
from nubes.llm.lora.batch import fetch, weigh
from nubes.llm.scheduling.blocks import Idle
from nubes.llm.scheduling.load import Load
from nubes.llm.scheduling.memory import grow, resume
from nubes.llm.scheduling.sequence import DECODE, DONE, MOVING, PREFILL, SWAPPED, WAITING, Sequence
from nubes.llm.scheduling.state import State, by_rank
from nubes.llm.scheduling.step import Chunk, Step
from nubes.llm.scheduling.tier import HostTier
from nubes.llm.seams import Batching, Ordering, Preemption, Retention, Speculation


class Scheduler:
    """One engine's queue, batch and KV memory."""

    def __init__(
        self,
        blocks: int,
        *,
        block_size: int = 16,
        host_blocks: int | None = None,
        batching: str | Batching | None = None,
        ordering: str | Ordering | None = None,
        preemption: str | Preemption | None = None,
        retention: str | Retention | None = None,
        speculation: str | Speculation | None = None,
        adapters: Mapping[str, int] = {},
        ahead: int = 8,
    ) -> None:
        """`adapters`: blocks of each LoRA adapter; those of the next `ahead` in line are copied before their turn."""
        self.batching = cast(Batching, make("batching", batching))
        self.ordering = cast(Ordering, make("ordering", ordering))
        self.preemption = cast(Preemption, make("preemption", preemption))
        self.retention = cast(Retention, make("retention", retention))
        self.speculation = cast(Speculation, make("speculation", speculation))
        if host_blocks is None:
            host_blocks = blocks if self.preemption.swapping or self.retention.tiered else 0
        self.state = State(
            blocks, block_size, host_blocks, shares=self.retention.shares, gaps=self.retention.gaps, adapters=adapters
        )
        self.tier = HostTier(self.state, self.retention) if self.retention.tiered and host_blocks else None
        self.ahead = ahead
        self.shed: list[Sequence] = []  # refused since they were last collected
        self.preemptions = 0
        self.swaps = 0  # of these to host memory
        self.prefix_queries = 0  # prompt tokens looked up in the cache, and found there
        self.prefix_hits = 0
        self.now = 0.0

    # -- requests -------------------------------------------------------------------------------------------------

    def arrive(self, sequence: Sequence, now: float) -> None:
        """A request waits from now on. It has to fit: see `fits`."""
        sequence.rank = self.ordering.rank(sequence, now)
        self.state.enqueue(sequence)

    def fits(self, sequence: Sequence) -> bool:
        """Whether the sequence could ever run to its end, alone on this engine."""
        state = self.state
        longest = max(sequence.prompt + sequence.limit, self.batching.reserve(sequence))
        blocks = -(-longest // state.block_size) * sequence.width + state.adapters.size(sequence.adapter)
        return blocks <= state.pool.size

    def cancel(self, sequence: Sequence, now: float) -> None:
        """A request is not wanted any more. Its blocks are free at once."""
        state = self.state
        if sequence.state == WAITING:
            state.waiting.remove(sequence)
            sequence.state = DONE
        elif sequence.state == SWAPPED:
            del state.swapped[sequence.id]
            state.unswap(sequence)
            sequence.state = DONE
        elif sequence.state != DONE:
            self._end(sequence, now)

    @property
    def idle(self) -> bool:
        state = self.state
        return not (state.decoding or state.prefilling or state.waiting or state.swapped)

    # -- the next step --------------------------------------------------------------------------------------------

    def compose(self, now: float) -> Step | None:
        """What to run next, with blocks for all of it; None if nothing can be done before something arrives."""
        state = self.state
        self.now = now
        if state.waiting:
            for sequence in self.ordering.sheds(state, now):
                state.waiting.remove(sequence)
                sequence.state = DONE
                self.shed.append(sequence)
            if self.ordering.dynamic:
                for sequence in state.waiting:
                    sequence.rank = self.ordering.rank(sequence, now)
                state.waiting.sort(key=by_rank)
        step = Step(Load())
        if state.swapped:
            resume(self, step)
        batch = self.batching.compose(state, now)
        for sequence, rows in batch.prompts:
            if sequence.state == WAITING and not self._admit(step, sequence):
                break
            if sequence.state == PREFILL:
                self._chunk(step, sequence, rows)
        if batch.decode and state.decoding:
            grow(self, step, now)
        if self.tier is not None:
            self.tier.copy_ahead(step, now)
        load = step.load
        if state.decoding and batch.decode:
            step.decodes = True
            load.decodes = len(state.decoding)
            load.decode_context = state.decode_context
        load.moved = len(step.saves) + len(step.loads)
        if state.adapters.sizes:
            fetch(self, step)
            weigh(state, step)
        return step if step.chunks or step.decodes or load.moved or step.fills else None

    def _admit(self, step: Step, sequence: Sequence) -> bool:
        """Gives a waiting sequence its blocks, unless those admitted before it took what was cached for it."""
        state, size = self.state, self.state.block_size
        tokens = self.batching.reserve(sequence)
        if state.need(sequence, tokens) > state.pool.available:
            return False
        found = state.found(sequence)
        state.adapters.hold(sequence.adapter)
        state.waiting.remove(sequence)
        for block in found:
            if block is not None and block >= 0:
                state.pool.hold(block)
        if self.tier is not None:
            self.tier.used(found)
        hits = size * (len(found) - found.count(None))
        if not sequence.preemptions:
            sequence.cached = hits
            self.prefix_queries += sequence.prompt
            self.prefix_hits += hits
        here = sum(1 for block in found if block is not None and block >= 0)
        fresh = iter(state.pool.take(-(-tokens // size) - here, self.victims))
        sequence.blocks = [next(fresh) if block is None or block < 0 else block for block in found] + list(fresh)
        if self.tier is not None:
            self.tier.load(step, sequence, found)
        sequence.segments = _missing(found, size, sequence.known)
        sequence.todo = sequence.known - hits
        sequence.computed(sequence.segments[0][0])
        sequence.registered = 0
        sequence.memo = None
        sequence.state = PREFILL
        state.prefilling[sequence.id] = sequence
        self.ordering.admitted(sequence, self.now)
        return True

    def _chunk(self, step: Step, sequence: Sequence, rows: int) -> None:
        """Rows of a prompt into the step, in as many pieces as there are gaps between them."""
        load = step.load
        while rows > 0 and sequence.todo:
            start, end = sequence.take(rows)
            rows -= end - start
            step.chunks.append(Chunk(sequence, start, end, not sequence.todo))
            count = end - start
            load.prefills += 1
            load.prefill_rows += count
            load.prefill_squares += count * count
            load.prefill_pairs += count * start
            load.prefill_context += start

    # -- what came of it ------------------------------------------------------------------------------------------

    def complete(self, step: Step, now: float) -> list[Sequence]:
        """The step ran: every decode has a token more, and the sequences returned have their first.

        These are those whose prompts are done, and right behind each the other answers that it forked into.
        """
        state = self.state
        if step.decodes:
            state.tick += 1
            state.decode_context += len(state.decoding)
        if step.fills:
            state.adapters.filled(now)
        started: list[Sequence] = []
        for chunk in step.chunks:
            sequence = chunk.sequence
            if sequence.state != PREFILL:
                continue  # cancelled, or gave way, while the step was made
            sequence.computed(sequence.segments[0][0] if sequence.segments else chunk.end)
            if chunk.last:
                del state.prefilling[sequence.id]
                started.append(sequence)
                self.register(sequence)
                started += self._fork(sequence)
        for sequence in started:
            sequence.emit()
            if sequence.first_s > now:
                sequence.first_s = now
            state.join(sequence)
        return started

    def finish(self, sequence: Sequence, now: float) -> None:
        """A decoding sequence has its last token. What it held is free, or kept for others."""
        if sequence.state == DECODE:
            self._end(sequence, now)

    def _fork(self, sequence: Sequence) -> list[Sequence]:
        """The other answers to a prompt that is done. They share its blocks; whoever writes first gets a copy."""
        state = self.state
        width, sequence.width = sequence.width, 1
        children = []
        for nth in range(1, width):
            child = Sequence(
                sequence.id + nth, sequence.prompt, sequence.limit, arrived_s=sequence.arrived_s,
                foreseen=sequence.foreseen, keys=list(sequence.keys), priority=sequence.priority, user=sequence.user,
                session=sequence.session, adapter=sequence.adapter, work=sequence.work,
            )  # fmt: skip
            child.group, child.rank, child.cached = sequence.id, sequence.rank, sequence.prompt
            child.blocks = sequence.blocks[: -(-sequence.known // state.block_size)]
            child.registered = sequence.registered
            for block in child.blocks:
                state.pool.hold(block)
            state.adapters.hold(child.adapter)
            children.append(child)
        if children and sequence.known % state.block_size:
            state.forked += [sequence, *children]
        return children

    # -- memory ---------------------------------------------------------------------------------------------------

    def take(self, blocks: int) -> list[int]:
        """Blocks for what is no sequence of the batch."""
        return self.state.pool.take(blocks, self.victims)

    def victims(self, idle: dict[int, Idle], count: int) -> Iterable[int]:
        if self.tier is not None:
            return self.tier.victims(idle, count, self.now)
        return self.retention.victims(idle, count, self.now)

    def host_victims(self, idle: dict[int, Idle], count: int) -> Iterable[int]:
        return self.tier.host_victims(idle, count, self.now) if self.tier is not None else ()

    def register(self, sequence: Sequence) -> None:
        """Others may find the blocks that are full by now."""
        if not self.state.shares or not sequence.keys:
            return
        full = min(sequence.context // self.state.block_size, len(sequence.keys))
        if self.tier is not None:
            self.tier.known(sequence.keys[sequence.registered : full])
        for at in range(sequence.registered, full):
            self.state.pool.register(sequence.blocks[at], sequence.keys[at])
        sequence.registered = max(sequence.registered, full)

    def _end(self, sequence: Sequence, now: float) -> None:
        state = self.state
        if sequence.state == DECODE:
            state.leave(sequence, DONE)
            self.register(sequence)
        elif sequence.state == MOVING:
            del state.moving[sequence.id]
            sequence.leave(DONE)
        else:
            del state.prefilling[sequence.id]
            sequence.leave(DONE)
        state.pool.release(sequence.blocks, sequence.session, now)
        state.adapters.leave(sequence.adapter, now)
        sequence.reset()
        self.ordering.finished(sequence, now)


def _missing(found: list[int | None], size: int, known: int) -> list[tuple[int, int]]:
    """The stretches of `known` tokens that no found block holds: (start, end)."""
    stretches: list[tuple[int, int]] = []
    begin = None
    for at, block in enumerate(found):
        if block is None and begin is None:
            begin = at * size
        elif block is not None and begin is not None:
            stretches.append((begin, at * size))
            begin = None
    stretches.append((len(found) * size if begin is None else begin, known))
    return stretches
