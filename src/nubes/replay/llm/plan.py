"""The cheapest way to serve a workload within an objective: hardware x parallelism x batching x replicas."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from math import ceil, inf
from typing import TYPE_CHECKING, Any

import msgspec

from nubes.kernel.errors import UsageError
from nubes.llm.models import gpu_facts, kv_tokens, llm_facts, step_model
from nubes.llm.scheduling.load import Load, StepModel
from nubes.replay.llm.configuration import Configuration
from nubes.replay.llm.measures import Measures
from nubes.replay.llm.report import Result
from nubes.replay.llm.runner import Task
from nubes.replay.llm.slo import Slo
from nubes.replay.runner import Progress, run

if TYPE_CHECKING:
    from nubes.workloads.llm import LLMWorkload

GPUS = ("a100", "h100", "a40")
TENSOR, PIPELINE = (1, 2, 4, 8), (1, 2, 4)
BATCHING = (
    "sarathi(budget=256)", "sarathi(budget=512)", "sarathi(budget=1024)", "sarathi(budget=2048)", "vllm",
)  # fmt: skip
DEVICES = 64
FULL_ROWS, FULL_DECODES = 2048, 64  # of steps that use a device well, for a first guess at how many are needed
FASTER = 1.5  # how a number of replicas grows that is too small
FAR = 2.0  # what would cost so much more than others waits until their outcome is known


class Trial(msgspec.Struct, frozen=True):
    """One configuration that was simulated. `hourly`: dollars of all its devices."""

    label: str
    llm: str
    batching: str
    replicas: int
    devices: int
    hourly: float
    measures: Measures

    @property
    def attained(self) -> float:
        return self.measures.attained or 0.0


class Hardware(msgspec.Struct, frozen=True):
    """The devices of one replica: tensor parallel x pipeline stages."""

    gpu: str
    tp: int
    pp: int

    def __str__(self) -> str:
        return f"{self.gpu} tp={self.tp} pp={self.pp}"


class Lost(msgspec.Struct, frozen=True):
    """What is not the answer, and why. Without a batching policy: under any."""

    hardware: Hardware
    batching: str
    reason: str


class Plan(msgspec.Struct, frozen=True):
    """`met` holds the smallest number of replicas found for each combination that keeps the objective: cheapest first.

    `tried` holds all that was simulated.
    """

    name: str
    source: str
    model: str
    requests: int
    rate: float
    slo: Slo
    attainment: float
    met: list[Trial]
    lost: list[Lost]
    tried: list[Trial]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        built: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        built["frontier"] = [msgspec.to_builtins(trial) for trial in frontier(self)]
        return built


class Search:
    """One combination of hardware and batching: how many replicas are known to be too few, and to be enough."""

    def __init__(self, hardware: Hardware, configuration: Configuration, model: StepModel, guess: int) -> None:
        self.hardware = hardware
        self.label = f"{hardware} {configuration.batching}"
        self.configuration = configuration
        self.model = model
        self.guess = guess
        self.price = configuration.price(model)  # of one replica, an hour
        self.fails = 0
        self.nearest = 0.0  # what `fails` replicas attain
        self.enough: Trial | None = None
        self.reason = ""

    def next(self, cheapest: float, devices: int) -> int | None:
        """How many replicas to try now, given the cheapest that is known to be enough; None: it is settled."""
        if self.enough is not None:
            worth = self.enough.replicas - self.fails > 1 and (self.fails + 1) * self.price <= cheapest
            return (self.fails + self.enough.replicas) // 2 if worth else None
        most = devices // self.model.devices
        affordable = int(cheapest / self.price + 1e-9) if cheapest < inf else most
        wanted = max(self.fails + 1, ceil(self.fails * FASTER)) if self.fails else self.guess
        wanted = max(1, min(wanted, most, affordable))
        if wanted > self.fails and wanted <= min(most, affordable):
            return wanted
        had = f"with {self.fails} only {self.nearest:.1%} of requests are in time, and " if self.fails else ""
        limit = f"cost more than ${cheapest:,.2f} an hour" if affordable < most else f"be more than {devices} devices"
        self.reason = f"{had}{self.fails + 1} would {limit}"
        return None

    def told(self, trial: Trial, attainment: float) -> None:
        """What a number of replicas attains."""
        if trial.attained >= attainment:
            self.enough = trial
        else:
            self.fails, self.nearest = trial.replicas, trial.attained


def plan_llm(
    workload: LLMWorkload,
    model: str,
    slo: Slo,
    *,
    gpus: Sequence[str] = GPUS,
    tensor: Sequence[int] = TENSOR,
    pipeline: Sequence[int] = PIPELINE,
    batching: Sequence[str] = BATCHING,
    attainment: float = 0.9,
    devices: int = DEVICES,
    prices: Mapping[str, float] | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Plan:
    """The cheapest of all combinations that serves `attainment` of the requests within `slo`, on at most `devices`.

    Combinations without a measured profile, those that do not fit, and those that are too slow even when idle are left
    out; of the others the number of replicas is searched, all side by side, until the rest cost more than the best.
    `prices`: dollars an hour of a device by its name. Raises `UsageError`.
    """
    if not 0.0 < attainment <= 1.0:
        raise UsageError(f"An attainment of {attainment:g} cannot be.", "Give a share of requests: 0.9.")
    llm_facts(model)
    for gpu in {*gpus, *(prices or {})}:
        gpu_facts(gpu)
    searches, lost = [], []
    for hardware in itertools.starmap(Hardware, itertools.product(gpus, tensor, pipeline)):
        try:
            found = profile(model, hardware)
        except UsageError as error:
            lost.append(Lost(hardware, "", error.message))
            continue
        idle = bound(workload, found, slo)
        if idle < attainment:
            lost.append(Lost(hardware, "", f"even an idle one keeps the objective for {idle:.1%} of requests at most"))
            continue
        for policy in batching:
            configuration = Configuration(
                found.name, policy, dollars_per_hour=(prices or {}).get(hardware.gpu)
            ).filled()
            searches.append(Search(hardware, configuration, found, guess(workload, found)))
    tried = _searched(searches, workload, slo, attainment, devices, jobs, progress)
    met = sorted((s.enough for s in searches if s.enough), key=lambda trial: (trial.hourly, -trial.attained))
    lost += [
        Lost(search.hardware, search.configuration.batching, search.reason)
        for search in searches
        if search.enough is None
    ]
    return Plan(
        workload.name, workload.source, llm_facts(model).name, workload.requests, workload.rate, slo, attainment, met,
        lost, tried,
    )  # fmt: skip


def _searched(
    searches: Sequence[Search], workload: LLMWorkload, slo: Slo, attainment: float, devices: int, jobs: int | None,
    progress: Progress | None,
) -> list[Trial]:  # fmt: skip
    """Tries numbers of replicas, round by round, until every search is settled."""
    tried: list[Trial] = []
    open_ = list(searches)
    while True:
        cheapest = min((s.enough.hourly for s in searches if s.enough), default=inf)
        wanted = [(search, n) for search in open_ if (n := search.next(cheapest, devices)) is not None]
        if not wanted:
            return tried
        open_ = [search for search, _ in wanted]
        lowest = min(n * search.price for search, n in wanted)
        now = [(search, n) for search, n in wanted if n * search.price <= FAR * lowest]
        tasks = []
        for number, (search, n) in enumerate(now):
            configuration = msgspec.structs.replace(search.configuration, instances=n)
            tasks.append(Task(number, configuration, f"{n} x {search.label}", search.model, workload, slo=slo))
        settled = len(searches) - len(wanted)

        def tell(share: float, what: str, settled: int = settled) -> None:
            if progress is not None:  # a round settles about half of what it holds
                progress((settled + share * (len(searches) - settled) / 2) / len(searches), what)

        results: list[Result] = run(tasks, jobs, tell)
        for (search, n), result in zip(now, results, strict=True):
            configuration = search.configuration
            trial = Trial(
                search.label, configuration.llm, configuration.batching, n, n * search.model.devices,
                n * search.price, result.measures,
            )  # fmt: skip
            search.told(trial, attainment)
            tried.append(trial)


def profile(model: str, hardware: Hardware) -> StepModel:
    """The step model of the best measurements there are. Raises `UsageError` if there are none, or it does not fit."""
    gpu, tp, pp = hardware.gpu, hardware.tp, hardware.pp
    kv_tokens(llm_facts(model), gpu_facts(gpu), tp, pp)
    names = [f"lin({model},gpu={gpu},tp={tp},pp={pp})"]
    if pp == 1:
        names.append(f"tab({model},gpu={gpu},tp={tp})")
    if gpu_facts(gpu).name == "a100-80":
        names.append(f"opt({model},gpu={gpu},tp={tp},pp={pp})")
    for name in names:
        try:
            return step_model(name)
        except UsageError:
            continue
    raise UsageError(f"there is no step profile of {model} on {gpu}", "Use another.")


def bound(workload: LLMWorkload, model: StepModel, slo: Slo) -> float:
    """The share of requests that an engine with nothing else to do could serve in time, at most.

    Requests that share what came before them might have less to compute, so their first token is not judged.
    """
    shares = workload.blocks is not None or workload.session is not None
    met = 0
    for prompt, output in zip(workload.prompt.tolist(), workload.output.tolist(), strict=True):
        first_s = 0.0 if shares else model.stages * model.seconds(Load.of([(prompt, 0)]))
        token_s = model.stages * model.seconds(Load.of((), [prompt + 1]))
        in_time = first_s <= slo.ttft_s and (output == 1 or token_s <= slo.tpot_s)
        met += in_time and first_s + (output - 1) * token_s <= slo.latency_s
    return met / workload.requests


def guess(workload: LLMWorkload, model: StepModel) -> int:
    """How many replicas about, if their steps were full."""
    prompt, output = float(workload.prompt.mean()), float(workload.output.mean())
    row_s = model.seconds(Load.of([(FULL_ROWS, 0)])) / FULL_ROWS
    token_s = model.seconds(Load.of((), [round(prompt + output)] * FULL_DECODES)) / FULL_DECODES
    return max(1, round(workload.rate * (prompt * row_s + output * token_s)))


def frontier(plan: Plan) -> list[Trial]:
    """Of all that was tried, what nothing cheaper beats: dearer and better from one to the next."""
    kept: list[Trial] = []
    for trial in sorted(plan.tried, key=lambda t: (t.hourly, -t.attained)):
        if not kept or trial.attained > kept[-1].attained:
            kept.append(trial)
    return kept
