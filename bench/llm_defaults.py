"""Which policies an LLM engine should have by default: `python bench/llm_defaults.py [--cpu FILE] [--live]`.

A grid of policies serves real and made-up requests in virtual time, on this machine and on a published GPU, at several
loads, and once with little memory. A column is one of these under one objective. Goodput there is divided by that of
the best configuration; the default should be the one whose worst and mean share are best: never far from the best,
rather than best once. `--cpu` names a recording or a saved fit; without it, steps are measured here first, which wants
a quiet machine. `--live` serves chats with the winner, the runner-up of another batching, and the default.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from llm_fidelity import BACKLOG, Live, serve

from nubes.drivers.sim.llm import simulate_llm
from nubes.kernel.errors import NotFound, NubesError
from nubes.llm.models import step_model
from nubes.llm.scheduling.load import Load, StepModel
from nubes.papers import generating
from nubes.replay.llm import Configuration, Slo
from nubes.replay.llm.configuration import DEFAULTS, link
from nubes.workloads.llm import LLMWorkload, load_llm

GPU = "lin(llama-3-8b,gpu=a100,tp=1)"
LIMITS = {"cpu": 2048, "gpu": 8192}  # tokens of a request: what each is good for
TRACES = ("azure-llm-2023", "mooncake", "sharegpt", "lmsys", "code-like", "agents-like")
LOADS = (0.5, 0.7, 0.9)  # of the rate at which the default policies work off a backlog
SHORT = 12  # long requests that little memory has room for
OBJECTIVES = {"strict": 2.0, "loose": 5.0}  # times a decode step of 32 sequences, for a token
FIRST = 5.0  # times the prompt of the 90th percentile alone, for a first token
BATCHING = (
    *(f"sarathi(budget={rows})" for rows in (32, 64, 128, 256, 512, 1024, 2048)),
    "vllm", "vllm(budget=512)", "orca(reserve=paged)",
)  # fmt: skip
ORDERING, PREEMPTION, RETENTION = ("fcfs", "early-abort"), ("recompute", "swap", "cheaper"), ("lru", "none")
CHATS, ROUNDS = 60, 2  # of the live part
DEFAULT = (DEFAULTS["batching"], DEFAULTS["ordering"], DEFAULTS["preemption"], DEFAULTS["retention"])

Policies = tuple[str, str, str, str]  # in the order of the grid
GRID: list[Policies] = list(itertools.product(BATCHING, ORDERING, PREEMPTION, RETENTION))


@dataclass(frozen=True)
class Column:
    machine: str
    trace: str
    load: float
    model: StepModel
    workload: LLMWorkload
    objectives: dict[str, Slo]

    def __str__(self) -> str:
        return f"{self.machine} {self.trace} {self.load:.0%}" + (
            " short of memory" if "short" in self.model.name else ""
        )


def objectives(model: StepModel, workload: LLMWorkload) -> dict[str, Slo]:
    """By what the machine can do at its best for such requests."""
    beat_s = model.seconds(Load.of([], [int(np.median(workload.prompt + workload.output))] * 32))
    alone_s = model.seconds(Load.of([(int(np.percentile(workload.prompt, 90)), 0)]))
    return {name: Slo(FIRST * alone_s + times * beat_s, times * beat_s) for name, times in OBJECTIVES.items()}


def configuration(model: StepModel, policies: Policies, slo: Slo) -> Configuration:
    """Policies that want to know of the machine are told."""
    batching, ordering, preemption, retention = policies
    step_s, thousand_s = (model.seconds(Load.of([(rows, 0)])) for rows in (1, 1001))
    if ordering == "early-abort":
        ordering = f"early-abort(slo={slo.ttft_s},spare={step_s})"
    if preemption == "cheaper":
        block_s = 16 * model.kv_bytes / link(model)
        preemption = f"cheaper(row_s={(thousand_s - step_s) / 1000},block_s={block_s},step_s={step_s})"
    return Configuration(model.name, batching, ordering, preemption, retention, host_tokens=model.kv_tokens)


def goodputs(column: Column, policies: Policies) -> dict[str, float]:
    """Requests a second within each objective."""
    found = {}
    outcome = None
    for name, slo in column.objectives.items():
        if outcome is None or policies[1] == "early-abort":
            outcome = simulate_llm(column.workload, configuration(column.model, policies, slo).engines(column.model))
        found[name] = float(slo.met(outcome).sum() / max(outcome.seconds, column.workload.seconds))
    return found


def work(column: Column) -> dict[tuple[Policies, str], float]:
    return {(of, name): rate for of in GRID for name, rate in goodputs(column, of).items()}


def columns(machines: dict[str, StepModel], count: int) -> Iterator[Column]:
    for (machine, model), trace in itertools.product(machines.items(), TRACES):
        made = trace.endswith("-like")
        options: dict[str, Any] = {"rate": 1.0, "length": f"{count}s"} if made else {}
        try:
            every = load_llm(trace, limit=LIMITS[machine], **options)
        except NotFound as error:
            print(f"Left out: {error}", file=sys.stderr)
            continue
        some = every.taking(np.arange(min(count, every.requests)))
        some = replace(some, seconds=float(some.arrival_s[-1]))
        together = replace(some, arrival_s=np.zeros(some.requests), session=None, think_s=None, blocks=None)
        slos = objectives(model, some)
        default = configuration(model, DEFAULT, slos["loose"]).engines(model)
        able = some.requests / simulate_llm(together, default).seconds
        for load in LOADS:
            yield Column(machine, trace, load, model, some.scaled(load * able), slos)
        little = SHORT * int(np.percentile(some.prompt + some.output, 95))
        tight: Any = replace(model, kv_tokens=min(little, model.kv_tokens), name=f"{model.name}, short")  # type: ignore[type-var]
        yield Column(machine, trace, LOADS[-1], tight, some.scaled(LOADS[-1] * able), slos)


@dataclass(frozen=True)
class Line:
    """How one configuration did: its share of the best in each column."""

    policies: Policies
    shares: dict[str, float]

    @property
    def worst(self) -> float:
        return min(self.shares.values())

    @property
    def mean(self) -> float:
        return statistics.mean(self.shares.values())

    @property
    def score(self) -> float:
        return self.worst + self.mean

    def of(self, word: str) -> float:
        """The mean over the columns with this in their names."""
        return statistics.mean(share for name, share in self.shares.items() if word in name)


def lines(
    every: Sequence[Column], found: Sequence[dict[tuple[Policies, str], float]], among: Sequence[Policies]
) -> list[Line]:
    """Those `among` which they are compared, the best first."""
    shares: dict[Policies, dict[str, float]] = {policies: {} for policies in among}
    for column, rates in zip(every, found, strict=True):
        for name in OBJECTIVES:
            best = max(rates[policies, name] for policies in among)
            for policies in among if best else ():
                shares[policies][f"{column}, {name}"] = rates[policies, name] / best
    return sorted((Line(*each) for each in shares.items()), key=lambda line: -line.score)


def show(title: str, some: Sequence[Line], words: Sequence[str]) -> None:
    """Those that did the same everywhere share a line: that of the first of them."""
    print(f"\n{title}")
    heads = "".join(f"{word.split()[0]:>8}" for word in words)
    print(f"  {'batching':<22}{'ordering':<13}{'preemption':<11}{'retention':<10}{'worst':>7}{'mean':>7}{heads}")
    seen: list[dict[str, float]] = []
    for line in some:
        if line.shares in seen:
            continue
        seen.append(line.shares)
        batching, ordering, preemption, retention = line.policies
        least = min(line.shares, key=line.shares.__getitem__)
        parts = "".join(f"{line.of(word):8.3f}" for word in words)
        print(
            f"  {batching:<22}{ordering:<13}{preemption:<11}{retention:<10}{line.worst:7.2f}{line.mean:7.3f}{parts}"
            f"  worst in {least}"
        )


def measured(folder: Path) -> StepModel:
    """A step model of the small LLM on this machine, fitted to a backlog and to a half load. Raises `NubesError`."""
    from nubes.llm.engine.recording import read
    from nubes.llm.models import fit

    checkpoint, runtime = generating.opened("int8", 32_768)
    runs = [(Live(1.0, folder / "warm"), 16, float("inf")), (Live(1.0, folder / "backlog"), BACKLOG, float("inf"))]
    for live, count, rate in runs:
        asyncio.run(serve(checkpoint, runtime, live, rate, count, 1))
    half = asyncio.run(
        serve(checkpoint, runtime, Live(0.5, folder / "half"), 0.5 * BACKLOG / runs[1][0].seconds, 40, 2)
    )
    steps = [step for live in (runs[1][0], half) for step in read(live.path).steps]
    kv_bytes = runtime.block_bytes // runtime.block_size
    model = fit(steps, "cpu", kv_tokens=runtime.blocks * runtime.block_size, kv_bytes=kv_bytes)
    runtime.close()
    return model


def live(model: StepModel, chosen: Sequence[Policies]) -> None:
    """The same chats under each of these, in turns; goodput as their clients saw it."""
    checkpoint, runtime = generating.opened("int8", 32_768)
    lengths = chats()
    text = generating.text(checkpoint)
    slos = objectives(model, lengths)
    requests = list(zip(generating.prompts(text, lengths.prompt.tolist(), 0), lengths.output.tolist(), strict=True))

    def run(policies: Policies, slo: Slo, arrival_s: Sequence[float]) -> tuple[dict[str, int], float]:
        made = configuration(model, policies, slo)
        named = {"batching": made.batching, "ordering": made.ordering, "preemption": made.preemption}
        begun = time.monotonic()
        with generating.engine(checkpoint, runtime, retention=made.retention, **named) as engine:
            told = asyncio.run(_clients(engine, [(at, *each) for at, each in zip(arrival_s, requests, strict=True)]))
        return {name: sum(_met(answer, slo) for answer in told) for name, slo in slos.items()}, time.monotonic() - begun

    run(DEFAULT, slos["loose"], [0.0] * CHATS)  # first touches
    able = CHATS / run(DEFAULT, slos["loose"], [0.0] * CHATS)[1]
    load = LOADS[1]
    at = lengths.scaled(load * able).arrival_s.tolist()
    rates: dict[Policies, dict[str, list[float]]] = {of: {name: [] for name in slos} for of in chosen}
    for _ in range(ROUNDS):
        for policies in chosen:
            met, seconds = run(policies, slos["loose"], at)
            for name, count in met.items():
                rates[policies][name].append(count / seconds)
    runtime.close()
    print(f"\nLive, {generating.MODEL} in int8: {CHATS} chats at {load:.0%} of {able:.2f} a second, {ROUNDS} rounds")
    for policies, found in rates.items():
        each = ", ".join(f"{name} ({slos[name]}) {statistics.median(of):.3f}" for name, of in found.items())
        print(f"  {' + '.join(policies)}: goodput {each} requests/s")


def chats() -> LLMWorkload:
    """Lengths of real chats, short ones; or such as these."""
    options = {"limit": LIMITS["cpu"] // 4}
    try:
        every = load_llm("sharegpt", n=CHATS, **options)
    except NotFound:
        every = load_llm("chat-like", rate=1.0, length=f"{2 * CHATS}s", **options)
    return replace(every.taking(np.arange(CHATS)), session=None, think_s=None)


async def _clients(engine: Any, requests: Sequence[tuple[float, list[int], int]]) -> list[generating.Answer | None]:
    """Each request's answer; None for one that was refused."""
    begun = time.monotonic()

    async def one(at_s: float, prompt: list[int], output: int) -> generating.Answer | None:
        await asyncio.sleep(max(0.0, begun + at_s - time.monotonic()))
        try:
            return await generating.ask(engine, prompt, output)
        except (NubesError, RuntimeError):
            return None

    return list(await asyncio.gather(*(one(*request) for request in requests)))


def _met(answer: generating.Answer | None, slo: Slo) -> bool:
    if answer is None or not answer.told_s:
        return False
    tpot_s = (answer.told_s[-1] - answer.told_s[0]) / max(len(answer.told_s) - 1, 1)
    return answer.told_s[0] - answer.sent_s <= slo.ttft_s and tpot_s <= slo.tpot_s


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cpu", help="a recording, or a saved fit; default: measure this machine")
    parser.add_argument("--save", help="where to save what was measured")
    parser.add_argument("--requests", type=int, default=200, help="of each trace")
    parser.add_argument("--jobs", type=int, default=None)
    parser.add_argument("--live", action="store_true", help="then serve chats live")
    options = parser.parse_args()
    machines: dict[str, StepModel] = {"gpu": step_model(GPU)}
    try:
        cpu: Any = step_model(f"cpu({options.cpu})") if options.cpu else measured(Path(tempfile.mkdtemp()))
        print(cpu.describe(), file=sys.stderr)
        if options.save:
            cpu.save(options.save)
        machines["cpu"] = cpu
    except NubesError as error:
        print(f"Without a model of this machine: {error}", file=sys.stderr)
    every = list(columns(machines, options.requests))
    found = []
    with ProcessPoolExecutor(options.jobs) as pool:
        for number, rates in enumerate(pool.map(work, every), 1):
            print(f"{number} of {len(every)}: {every[number - 1]}", file=sys.stderr)
            found.append(rates)
    ranked = lines(every, found, GRID)
    plain = lines(every, found, [policies for policies in GRID if policies[1] == DEFAULT[1]])
    words = [*(f"{machine} " for machine in machines), "short of memory", *OBJECTIVES]
    print(f"{len(GRID)} configurations over {len(ranked[0].shares)} columns: share of the best goodput of each column.")
    show("Best by worst + mean share, refusals among them", ranked[:12], words)
    show("Among those that refuse nobody", plain[:24], words)
    each = [next(line for line in plain if line.policies[0] == batching) for batching in BATCHING]
    show("The best of these with each batching", each, words)
    show("Today's default, among these", [line for line in plain if line.policies == DEFAULT], words)
    if options.live:
        if "cpu" not in machines or generating.missing():
            sys.exit(f"Not served live: {generating.missing() or 'there is no model of this machine.'}")
        winner = plain[0].policies
        second = next(line.policies for line in plain if line.policies[0] != winner[0])
        live(machines["cpu"], list(dict.fromkeys((winner, second, DEFAULT))))


if __name__ == "__main__":
    main()
