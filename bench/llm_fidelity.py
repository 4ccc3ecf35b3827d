"""How true replays are to a live LLM engine: `python bench/llm_fidelity.py [--runs N] [--seconds S] [--format F]`.

Each run serves an open loop of mixed requests at a share of what the machine can do, on an engine that records itself;
times to tokens are taken where a client stands. A step model is fitted to the steps of one half of the runs. With it
the arrivals of the other half are served in virtual time, and median and p95 of TTFT and TPOT are held against what
was measured. Every second run of a load is in either half.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import Row, report, show_s

from nubes.drivers.sim.llm import Instance, simulate_llm
from nubes.kernel.errors import NubesError
from nubes.llm.checkpoint import load
from nubes.llm.engine.local import LocalEngine
from nubes.llm.engine.opening import open_runtime
from nubes.llm.engine.recording import About, Recorder, Recording, read
from nubes.llm.models import fit
from nubes.llm.scheduling.scheduler import Scheduler
from nubes.llm.spec import Request, Sampling

if TYPE_CHECKING:
    from nubes.llm.scheduling.load import StepModel

MODEL = "smollm2-135m"
LOADS = (0.35, 0.55, 0.75)  # shares of the rate at which a backlog is worked off
BACKLOG, WITHIN = 48, 10.0  # requests; percent
SYSTEM = 96  # tokens that a third of the prompts begin with
METRICS = (("TTFT", 50), ("TTFT", 95), ("TPOT", 50), ("TPOT", 95))


@dataclass
class Live:
    """One run as its clients saw it, and its recording."""

    load: float
    path: Path
    ttft_s: list[float] = field(default_factory=list)
    tpot_s: list[float] = field(default_factory=list)
    seconds: float = 0.0


def prompts(draw: np.random.Generator, count: int, vocab: int) -> list[tuple[list[int], int]]:
    """(prompt, tokens to generate) of mixed requests: 50 to 350 in, 16 to 112 out."""
    system = np.random.default_rng(0).integers(100, vocab, SYSTEM).tolist()
    made = []
    for _ in range(count):
        own = draw.integers(100, vocab, int(draw.integers(50, 351))).tolist()
        whole = [*system, *own][: max(len(own), SYSTEM + 1)] if draw.random() < 1 / 3 else own
        made.append((whole, int(draw.integers(16, 113))))
    return made


async def ask(engine: LocalEngine, name: str, prompt: list[int], output: int, live: Live) -> None:
    sampling = Sampling(max_tokens=output, temperature=0.0, ignore_eos=True)
    begun = time.monotonic()
    first = last = 0.0
    async for delta in engine.generate(Request(id=name, prompt=prompt, sampling=sampling)):
        last = time.monotonic()
        first = first or last
        if delta.error:
            sys.exit(f"The engine failed: {delta.error}")
    live.ttft_s.append(first - begun)
    live.tpot_s.append((last - first) / (output - 1))


async def serve(checkpoint: Any, runtime: Any, live: Live, rate: float, count: int, seed: int) -> Live:
    """`count` requests at `rate` a second, all at once if that is infinite."""
    draw = np.random.default_rng(seed)
    about = About(model=checkpoint.name, blocks=runtime.blocks, block_size=runtime.block_size)
    recorder = Recorder(live.path, about)
    engine = LocalEngine(checkpoint.name, runtime, checkpoint.tokens, recorder=recorder)
    begun = time.monotonic()
    pending, at = [], begun
    for number, (prompt, output) in enumerate(prompts(draw, count, checkpoint.shape.vocab)):
        await asyncio.sleep(max(0.0, at - time.monotonic()))
        pending.append(asyncio.create_task(ask(engine, str(number), prompt, output, live)))
        at += draw.exponential(1 / rate)
    await asyncio.gather(*pending)
    live.seconds = time.monotonic() - begun
    engine.close()
    recorder.close()
    return live


def predicted(recording: Recording, model: StepModel) -> dict[str, np.ndarray]:
    about = recording.about
    scheduler = Scheduler(about.blocks, block_size=about.block_size)
    served = simulate_llm(recording.workload, [Instance(scheduler, model)])
    return {"TTFT": served.ttft_s, "TPOT": served.tpot_s}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--format", default="int8")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        checkpoint = load(MODEL)
        runtime = open_runtime(checkpoint, options.format)
    except NubesError as error:
        print(f"Not measured: {error}", file=sys.stderr)
        return
    folder = Path(tempfile.mkdtemp(prefix="nubes-llm-fidelity-"))
    for name in ("warm", "backlog"):
        backlog = asyncio.run(serve(checkpoint, runtime, Live(1.0, folder / name), float("inf"), BACKLOG, 1))
    able = BACKLOG / backlog.seconds
    print(f"{MODEL}, {options.format}: works off {able:.2f} requests a second.", file=sys.stderr)
    lives = []
    for number in range(options.runs):
        share = LOADS[number // 2 % len(LOADS)]
        count = max(10, round(share * able * options.seconds))
        live = Live(share, folder / f"run-{number}")
        lives.append(asyncio.run(serve(checkpoint, runtime, live, share * able, count, 100 + number)))
    report(f"Replays against a live engine, {MODEL} {options.format}", rows(lives))


def rows(lives: list[Live]) -> list[Row]:
    """A row for each metric: the median over the predicted runs of how far the prediction is off, in percent."""
    seen, held = [read(live.path) for live in lives[::2]], lives[1::2]
    try:
        model = fit(
            [step for one in seen for step in one.steps], kv_tokens=seen[0].about.blocks * seen[0].about.block_size
        )
    except NubesError as error:
        sys.exit(str(error))
    print(model.describe(), file=sys.stderr)
    off: dict[tuple[str, int], list[float]] = {metric: [] for metric in METRICS}
    pairs: dict[tuple[str, int], list[tuple[float, float]]] = {metric: [] for metric in METRICS}
    for live in held:
        told = predicted(read(live.path), model)
        measured = {"TTFT": live.ttft_s, "TPOT": live.tpot_s}
        words = []
        for name, percentile in METRICS:
            was = float(np.percentile(measured[name], percentile))
            is_now = float(np.percentile(told[name], percentile))
            off[name, percentile].append(100.0 * abs(is_now / was - 1.0))
            pairs[name, percentile].append((is_now, was))
            words.append(f"{name} p{percentile} {show_s(is_now)} ({show_s(was)})")
        print(f"  load {live.load:.0%}, predicted (measured): {', '.join(words)}", file=sys.stderr)
    made = []
    for name, percentile in METRICS:
        gaps, (ours, live_s) = off[name, percentile], pairs[name, percentile][-1]
        what = f"{name} p{percentile}: off by %, median of {len(gaps)} runs (largest {max(gaps):.1f})"
        made.append(Row(what, show_s(ours), f"live {show_s(live_s)}", statistics.median(gaps), WITHIN, False))
    return made


if __name__ == "__main__":
    main()
