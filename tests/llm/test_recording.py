"""Recordings of live engines: written, read, replayed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nubes.drivers.sim.llm import Instance, simulate_llm
from nubes.kernel.errors import UsageError
from nubes.llm.engine.recording import About, Recorder, Recording, read
from nubes.llm.models.cpu import Cpu
from nubes.llm.scheduling.load import Load
from nubes.llm.scheduling.scheduler import Scheduler
from nubes.llm.scheduling.sequence import Sequence
from nubes.workloads.llm import load_llm

BLOCKS, SIZE = 400, 16
MACHINE = Cpu("true", (2e-3, 1e-4, 1e-8, 1e-7, 2e-5), 0.0, 100, BLOCKS * SIZE)


def engine() -> Scheduler:
    return Scheduler(BLOCKS, block_size=SIZE, batching="sarathi(budget=64)")


def serve(path: Path, seed: int = 0, requests: int = 60) -> None:
    """A made-up engine that takes exactly the machine's time, recorded: two users share the beginning of a prompt."""
    draw = np.random.default_rng(seed)
    scheduler = engine()
    recorder = Recorder(path, About(model="m", blocks=BLOCKS, block_size=SIZE, policies={"batching": "sarathi"}))
    coming = []
    for number, at in enumerate(np.cumsum(draw.exponential(0.05, requests)).tolist()):
        prompt, output = int(draw.integers(40, 200)), int(draw.integers(1, 40))
        keys = [1000 + n if n < 2 else 10_000 * (number + 1) + n for n in range((prompt + output) // SIZE)]
        coming.append(Sequence(number, prompt, output, arrived_s=100.0 + at, keys=keys, session=f"s{number % 3}"))
    coming.reverse()
    now = 100.0
    while coming or not scheduler.idle:
        while coming and coming[-1].arrived_s <= now:
            scheduler.arrive(coming.pop(), now)
        step = scheduler.compose(now)
        if step is None:
            now = coming[-1].arrived_s
            continue
        took = MACHINE.seconds(step.load)
        now += took
        recorder.step(step.load, took)
        running = list(scheduler.state.decoding.values()) if step.decodes else []
        for sequence in [*running, *scheduler.complete(step, now)]:
            if sequence.generated == sequence.limit:
                scheduler.finish(sequence, now)
                recorder.request(sequence, now)
    recorder.close()


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    path = tmp_path_factory.mktemp("recording") / "chat.jsonl"
    serve(path)
    return read(path)


def test_a_recording_holds_what_happened(recording: Recording) -> None:
    assert recording.about.policies == {"batching": "sarathi"}
    assert len(recording.answers) == 60
    assert (np.diff(recording.workload.arrival_s) >= 0).all()
    assert sum(load.prefill_rows for load, _ in recording.steps) == sum(a.prompt - a.cached for a in recording.answers)
    assert sum(a.cached for a in recording.answers) > 0
    assert set(recording.workload.session.tolist()) == {0, 1, 2}  # type: ignore[union-attr]


def test_a_model_fitted_to_it_is_the_machine(recording: Recording) -> None:
    model = recording.fit()
    for load in (Load.of([(64, 0)], []), Load.of([(30, 100)], [50, 80, 120])):
        assert model.seconds(load) == pytest.approx(MACHINE.seconds(load), rel=0.02)


def test_its_replay_is_what_was_measured(recording: Recording) -> None:
    served = simulate_llm(load_llm(recording.path), [Instance(engine(), MACHINE)])
    assert served.ttft_s == pytest.approx(recording.ttft_s)
    assert served.tpot_s == pytest.approx(recording.tpot_s)
    assert served.cached.tolist() == [answer.cached for answer in recording.answers]


def test_guesses_are_recorded_by_what_became_of_them(tmp_path: Path) -> None:
    """An engine that repeats itself, so that n-grams guess right; then its own replay."""
    import asyncio

    from nubes.llm.engine.recording import rates, record
    from nubes.replay.llm import configurations, replay_llm
    from tests.llm.toy import ask, engine

    assert rates([]) == ()
    assert rates([[(2, 1), (1, -1)], [(3, 0)], []]) == ((1 / 3, 1 / 2, 0.0), (0.0,))

    async def talk() -> None:
        async with engine(speculation="sequence(depth=2,fixed=true)") as made:
            recorder = record(made, tmp_path / "guessed.jsonl")
            for _ in range(30):
                await ask(made, [5, 6, 7, 5, 6, 7, 5, 6], 12)
            recorder.close()

    asyncio.run(talk())
    found = read(tmp_path / "guessed.jsonl")
    assert found.about.policies["speculation"] == "sequence(depth=2,fixed=true)"
    assert len(found.hits) <= 2
    assert all(0 <= rate <= 1 for ranks in found.hits for rate in ranks)
    model = "opt(opt-13b,tp=1)"
    (row,) = replay_llm(
        found.workload, [c.filled(found.about.policies, found.hits) for c in configurations([model])]
    ).rows
    assert "recorded" in row.model


def test_a_cut_line_is_left_out_and_a_broken_one_named(recording: Recording, tmp_path: Path) -> None:
    whole = recording.path.read_bytes()
    cut, broken = tmp_path / "cut.jsonl", tmp_path / "broken.jsonl"
    cut.write_bytes(whole[:-5])
    assert len(read(cut).answers) == len(recording.answers) - 1
    broken.write_bytes(whole.replace(b'["step"', b'["stop"', 1))
    with pytest.raises(UsageError, match="line 2"):
        read(broken)
    with pytest.raises(UsageError, match="no recording"):
        read(__file__)
