"""The scheduler under random days: whatever comes, no block is lost, nobody starves, and everybody gets their tokens."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from nubes.llm.scheduling.invariants import check
from nubes.llm.scheduling.scheduler import Scheduler
from nubes.llm.scheduling.sequence import DECODE, DONE, SWAPPED, WAITING, Sequence
from nubes.llm.scheduling.step import Step
from nubes.llm.speculative import slots

BATCHINGS = [
    "sarathi(budget=24)",
    "sarathi(budget=3,max_seqs=4)",
    "vllm(budget=64)",
    "orca(reserve=max,max_len=96)",
    "orca(reserve=pow2)",
    "orca(reserve=oracle)",
    "orca(reserve=paged)",
    "sarathi(budget=24,chunked=false)",
    "sarathi(budget=24,hybrid=false)",
    "static(reserve=oracle)",
    "s-lora",
    "s-lora(max_seqs=8,distinct=2)",
    "one-adapter",
    "punica(max_seqs=6)",
]
RETENTIONS = ["lru", "none", "pensieve(chunk=4)", "pensieve(by=lru,low=1)", "pensieve(by=conversation,batch=3)"]

# Memory never runs out under these: it is reserved ahead, or few run at once.
CALM = {
    "sarathi(budget=3,max_seqs=4)",
    "s-lora",
    "s-lora(max_seqs=8,distinct=2)",
    "punica(max_seqs=6)",
    *(text for text in BATCHINGS if "reserve=" in text and "paged" not in text),
}


class Day:
    """Drives a scheduler as an engine would, with made-up tokens, and counts what everybody got."""

    def __init__(self, seed: int, batching: str, preemption: str, retention: str, guesses: bool = False) -> None:
        self.draw = random.Random(seed)
        self.guesses = guesses  # whether some tokens are guessed ahead
        size = self.draw.choice([1, 2, 4, 16])
        self.scheduler = Scheduler(
            self.draw.randint(200 // size, 600 // size), block_size=size, host_blocks=self.draw.choice([0, 20, 200]),
            batching=batching, preemption=preemption, retention=retention,
            adapters={f"a{n}": self.draw.randint(1, 8) for n in range(6 * (seed % 2))}, ahead=self.draw.choice([1, 3, 8]),
        )  # fmt: skip
        self.size = size
        self.holds: dict[int, object] = {}  # block -> which part of an adapter was copied there last, or KV
        self.hosts = self.scheduler.state.host.size
        self.now = 0.0
        self.count = 0
        self.alive: dict[int, Sequence] = {}
        self.computed: dict[int, int] = {}
        self.finished = 0
        self.seen: Counter[str] = Counter()

    def arrive(self) -> None:
        self.count += 1
        prompt, limit = self.draw.randint(1, 60), self.draw.randint(1, 30)
        family = self.draw.randint(0, 3)
        keys = [(family, at) if at < 5 else (family, self.count, at) for at in range((prompt + limit) // self.size)]
        adapter = self.draw.choice(["", *self.scheduler.state.adapters.sizes])
        sequence = Sequence(
            self.count * 8, prompt, limit, arrived_s=self.now, keys=[(adapter, key) for key in keys],
            width=self.draw.choice([1, 1, 1, 3]), session=str(family), adapter=adapter,
        )  # fmt: skip
        if self.scheduler.fits(sequence):
            self.scheduler.arrive(sequence, self.now)
            self.alive[sequence.id] = sequence

    def step(self) -> Step | None:
        scheduler, state = self.scheduler, self.scheduler.state
        step = scheduler.compose(self.now)
        if step is None:
            return None
        load = step.load
        for chunk in step.chunks:
            self.seen["again"] += chunk.sequence.preemptions > 0
            assert chunk.sequence.blocks
            assert chunk.end <= len(chunk.sequence.blocks) * self.size
        for sequence in step.resumed:
            assert sequence.state in (DECODE, SWAPPED, WAITING), "it came back, and may have had to leave again"
        self.seen.update(
            saves=len(step.saves), loads=len(step.loads), copies=len(step.copies), resumed=len(step.resumed)
        )
        assert load.moved == len(step.saves) + len(step.loads)
        writes = [s.blocks[s.context // self.size] for s in state.decoding.values()] if step.decodes else []
        assert len(set(writes)) == len(writes), "two sequences would write to one block"
        self.adapted(step, writes)
        assert load.decodes == (len(state.decoding) if step.decodes else 0)
        assert load.prefill_rows == sum(c.end - c.start for c in step.chunks)
        assert load.prefill_pairs == sum((c.end - c.start) * c.start for c in step.chunks)
        for sequence in list(state.decoding.values()) if self.guesses and step.decodes else ():
            if self.draw.random() < 0.6:
                held = list(sequence.blocks)
                added = slots.guess(scheduler, step, sequence, rows := self.draw.randint(1, 40))
                self.seen["refused"] += not added
                assert added or sequence.blocks == held
                assert not added or sequence.context + 1 + rows <= len(sequence.blocks) * self.size
        assert load.guesses == sum(guess.rows for guess in step.guesses)
        self.now += 0.1
        if self.draw.random() < 0.05 and self.alive:  # somebody hangs up while the step runs
            scheduler.cancel(self.alive.pop(self.draw.choice(list(self.alive))), self.now)
        started = scheduler.complete(step, self.now)
        self.seen["forks"] += sum(sequence.group != sequence.id for sequence in started)
        self.alive.update({sequence.id: sequence for sequence in started})
        for guess in step.guesses:
            sequence = guess.sequence
            before, held = sequence.known, len(sequence.blocks)
            tokens = self.draw.randint(0, max(0, min(guess.rows, sequence.limit - sequence.generated)))
            slots.accept(scheduler.state, guess, tokens)
            if sequence.state == DECODE:
                self.seen.update(guessed=tokens, returned=held - len(sequence.blocks))
                assert sequence.known == before + tokens
                assert len(sequence.blocks) <= max(guess.held, -(-sequence.context // self.size))
        check(state)
        for sequence in [s for s in state.decoding.values() if s.generated >= s.limit]:
            scheduler.finish(sequence, self.now)
            if self.alive.pop(sequence.id, None) is not None:
                assert sequence.generated == sequence.limit
                self.finished += 1
        check(state)
        return step

    def adapted(self, step: Step, writes: list[int]) -> None:
        """Whoever computes has its whole adapter in place, and what is copied goes where nobody is."""
        state = self.scheduler.state
        for _, block in [*step.copies, *step.loads]:
            self.holds[block] = "kv"
        for chunk in step.chunks:
            for at in range(chunk.start // self.size, -(-chunk.end // self.size)):
                self.holds[chunk.sequence.blocks[at]] = "kv"
        self.holds.update(dict.fromkeys(writes, "kv"))
        rows = [chunk.sequence.adapter for chunk in step.chunks]
        rows += [s.adapter for s in state.decoding.values() if step.decodes]
        for name in filter(None, rows):
            parts = [self.holds[block] for block in state.adapters.held[name]]
            assert parts == [(name, nth) for nth in range(state.adapters.sizes[name])], "an adapter is not in its place"
        held = {block for s in (*state.decoding.values(), *state.prefilling.values()) for block in s.blocks}
        for name, nth, block in step.fills:
            assert block not in held, "an adapter is copied over somebody's KV"
            self.holds[block] = (name, nth)
        assert step.load.adapter_rows == sum(
            state.adapters.size(chunk.sequence.adapter) * (chunk.end - chunk.start) for chunk in step.chunks
        ) + sum(state.adapters.size(s.adapter) for s in state.decoding.values() if step.decodes)


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("preemption", ["recompute", "swap", "cheaper(row_s=1,block_s=1)"])
@pytest.mark.parametrize("guesses", [False, True], ids=["plain", "guesses"])
def test_random_days(batching: str, preemption: str, guesses: bool) -> None:
    seen: Counter[str] = Counter()
    for seed in range(8):
        day = Day(seed, batching, preemption, random.Random(seed).choice(RETENTIONS), guesses)
        for _ in range(150):
            while day.draw.random() < 0.4:
                day.arrive()
            if day.step() is None:
                assert not day.scheduler.state.running
            if day.draw.random() < 0.1:
                day.now += 1.0
        for _ in range(20_000):
            if day.step() is None:
                break
        assert day.scheduler.idle, "somebody is never served"
        assert not day.alive or all(s.state == DONE for s in day.alive.values())
        assert day.scheduler.state.pool.used == 0
        assert day.finished > 20
        seen += day.seen + Counter(preemptions=day.scheduler.preemptions, swaps=day.scheduler.swaps)
        assert day.scheduler.state.host.available == day.hosts, "a block of host memory is lost"
    assert seen["forks"] > 50
    assert seen["copies"] > 50
    if guesses:
        assert min(seen["guessed"], seen["returned"]) > 50
    elif batching not in CALM:
        assert seen["preemptions"] > 50
        assert seen["again"] > 10  # also with swaps: prompts that are not done start anew
        assert bool(seen["swaps"]) == bool(seen["resumed"]) == (preemption != "recompute")
