"""Bring your own policy: a file against every policy on its seam, over several workloads and seeds."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from math import exp, log
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from nubes.kernel.errors import NotFound, UsageError
from nubes.kernel.policy import SEAMS, Policy, load, policies, set_aside
from nubes.replay.configuration import DEFAULTS, Configuration
from nubes.replay.measures import Measures
from nubes.replay.refusal import Guard, check
from nubes.replay.runner import Job, Progress, run

if TYPE_CHECKING:
    from nubes.workloads.outcome import Outcome
    from nubes.workloads.workload import Workload

TRACES = ("azure-functions-2019/100", "iluvatar-functions")  # used where they are at hand
MADE_UP = ("azure-like(functions=100,length=2h)", "huawei-like(length=2h)", "bursty(functions=10,length=20m)")
LONGEST_S = 7200.0  # traces are cut after this
MACHINES = 4  # where placement decides
SEEDS = (0, 1, 2)
RESAMPLES = 1000

# What is compared, lowest first, and the least that counts: nothing is infinitely better than a little more than zero.
COMPARED: dict[str, tuple[str, float, Callable[[Measures], float]]] = {
    "cold_share": ("cold starts", 1e-4, lambda m: m.cold_share),
    "wait": ("mean wait", 1e-3, lambda m: m.mean_wait_s),
    "wasted": ("wasted memory", 1.0, lambda m: m.wasted_gib_s),
    "dollars": ("cost", 1e-4, lambda m: m.dollars),
}


class Ratio(msgspec.Struct, frozen=True):
    """A policy's value over the candidate's: the geometric mean over all runs, with its 95 % bootstrap interval."""

    low: float
    middle: float
    high: float


class Opponent(msgspec.Struct, frozen=True):
    policy: str
    means: dict[str, float]  # over all runs
    ratios: dict[str, Ratio]  # above 1: the candidate is better
    tie: bool  # the same to the last bit, in every run


class Trial(msgspec.Struct, frozen=True):
    """What came out. The same file gives the same trial."""

    candidate: str
    seam: str
    workloads: list[str]
    seeds: list[int]
    means: dict[str, float]
    opponents: list[Opponent]
    capacity: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        built: dict[str, Any] = msgspec.to_builtins(self)
        return built


class Candidate:
    """A policy from a user's file. Raises `UsageError` if there is none in it, `PolicyRefused` if it may not run."""

    def __init__(self, file: str, seam: str) -> None:
        path, _, self.name = file.partition("::")
        self.path = Path(path)
        self.seam = seam
        self._cls: type[Policy] | None = None
        self.guard = Guard(self.path.name)

    def __getstate__(self) -> tuple[str, str]:
        return f"{self.path}::{self.name}" if self.name else str(self.path), self.seam

    def __setstate__(self, state: tuple[str, str]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    @property
    def label(self) -> str:
        return self.path.name if not self.name else f"{self.path.name}::{self.name}"

    def make(self) -> Policy:
        """A new policy with its default arguments."""
        if self._cls is None:
            self._cls = self._load()
        with self.guard.shut():
            try:
                made = cast(Any, self._cls)()
            except TypeError as error:
                raise UsageError(
                    f"{self._cls.__name__} in {self.path.name}: {error}.", "Give every argument a default."
                ) from None
        made._text = self.label
        return cast(Policy, made)

    def _load(self) -> type[Policy]:
        load()
        base = SEAMS[self.seam].base
        tree = check(self.path)
        _import_for(tree)
        spec = importlib.util.spec_from_file_location(f"nubes_trial_{self.path.stem}", self.path)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module.__name__] = module
        code = compile(tree, str(self.path), "exec")
        with set_aside(self.seam), self.guard.shut():
            exec(code, module.__dict__)
        found = {
            name: cls
            for name, cls in vars(module).items()
            if isinstance(cls, type) and issubclass(cls, base) and cls.__module__ == module.__name__
        }
        if self.name:
            found = {name: cls for name, cls in found.items() if self.name in (name, cls.name)}
        last = [cls for cls in found.values() if not any(cls in other.__mro__[1:] for other in found.values())]
        if len(last) != 1:
            names = ", ".join(cls.__name__ for cls in last) or "none"
            raise UsageError(
                f"{self.path.name} holds {len(last)} policies on {self.seam!r} ({names}).",
                f"Define one class that extends {base.__name__}, or name it: {self.path.name}::NAME.",
            )
        return last[0]


def _import_for(tree: ast.Module) -> None:
    """Imports what the file imports, before the doors are closed: a module that starts up may look at the clock."""
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in filter(None, names):
            importlib.import_module(name)


class _TrialJob(Job):
    """A run in which one seam may be held by the candidate."""

    __slots__ = ("candidate",)

    def __init__(
        self, number: int, workload: str, seed: int, configuration: Configuration, candidate: Candidate | None
    ) -> None:
        super().__init__(number, configuration, workload, workload, seed)
        self.candidate = candidate

    def run(self, tick: Callable[[float], None]) -> tuple[Workload, Outcome]:
        from nubes.drivers.sim import simulate
        from nubes.functions.controller import Functions

        workload = _workload(self.source, self.seed)
        calls = max(1, workload.calls)
        assert self.configuration is not None
        c = self.configuration
        if self.candidate is None:
            return workload, simulate(workload, c.controller(), progress=lambda done: tick(done / calls))
        chosen: dict[str, Any] = {name: value for name, value in msgspec.structs.asdict(c).items() if value != ""}
        chosen[self.candidate.seam.replace("-", "_")] = self.candidate.make()
        controller = Functions(**chosen)
        guard = self.candidate.guard
        with guard.shut():
            told = guard.outside(lambda done: tick(done / calls))
            return workload, simulate(workload, controller, progress=told)


@lru_cache(maxsize=2)
def _workload(name: str, seed: int) -> Workload:
    from nubes.workloads import load
    from nubes.workloads.recording import Recording

    loaded = load(name, seed)
    workload: Workload = loaded.workload if isinstance(loaded, Recording) else loaded
    return workload.until(LONGEST_S) if workload.seconds > LONGEST_S else workload


def try_policy(
    file: str,
    seam: str,
    workloads: Sequence[str] = (),
    seeds: Sequence[int] = SEEDS,
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Trial:
    """Runs the policy in `file` (or `file.py::NAME`), and every policy on that seam, over every workload and seed.

    Workloads are given by name (`nubes.workloads.load`); by default public traces that are at hand, and made-up ones.
    Capacity is short where the seam decides about it. Raises `PolicyRefused` if the policy may not run.
    """
    load()
    if seam not in SEAMS:
        raise NotFound(f"There is no seam {seam!r}.", f"The seams are: {', '.join(sorted(SEAMS))}.")
    if seam not in CAPACITY:
        raise UsageError(f"Policies of {seam!r} cannot be tried over traces.", f"Those of {', '.join(CAPACITY)} can.")
    candidate = Candidate(file, seam)
    candidate.make()  # what is wrong with it is said before anything runs
    names = list(workloads) or default_workloads()
    others = [cls.name for cls in policies(seam)]
    field = seam.replace("-", "_")
    todo: list[_TrialJob] = []
    for name in names:
        for seed in seeds:
            limits = _capacity(seam, _workload(name, seed))
            for other in [None, *others]:
                named = msgspec.structs.replace(limits, **{field: other or DEFAULTS[seam]}).filled()
                held = candidate if other is None else None
                todo.append(_TrialJob(len(todo), name, seed, named, held))
    results = [result.measures for result in run(todo, jobs, progress)]
    width = len(others) + 1
    mine = results[::width]
    opponents = [_opponent(other, mine, results[1 + nth :: width]) for nth, other in enumerate(others)]
    opponents.sort(key=lambda o: (-o.ratios["wait"].middle, o.policy))
    return Trial(candidate.label, seam, names, list(seeds), _means(mine), opponents, CAPACITY[seam])


def default_workloads() -> list[str]:
    """The traces that are at hand, then made-up workloads."""
    traces = os.environ.get("NUBES_TRACES", "")
    return [name for name in TRACES if traces and (Path(traces) / name).is_dir()] + list(MADE_UP)


CAPACITY = {
    "keep-alive": "memory for what runs on average, and for one instance of half of all functions",
    "queueing": "CPU for 1.5 times what runs on average",
    "cold-start": "no limit",
    "placement": "4 machines, together 1.5 times the mean CPU in use and the memory of the keep-alive seam",
}


def _capacity(seam: str, workload: Workload) -> Configuration:
    """Limits under which the seam's decisions matter (`CAPACITY`), but every function fits a few times."""
    import numpy as np

    memory = np.array([spec.memory_bytes for spec in workload.specs], float)
    cpu = np.array([spec.cpu for spec in workload.specs])
    running = np.bincount(workload.function, workload.exec_s, len(workload.specs)) / workload.seconds
    if seam == "keep-alive":
        warm = float((running * memory).sum() + memory.sum() / 2)
        return Configuration(memory_bytes=max(warm, 4.0 * float(memory.max())))
    if seam == "queueing":
        return Configuration(cpu=max(1.5 * float((running * cpu).sum()), 4.0 * float(cpu.max())))
    if seam == "placement":
        warm = max(float((running * memory).sum() + memory.sum() / 2) / MACHINES, 2.0 * float(memory.max()))
        busy = max(1.5 * float((running * cpu).sum()) / MACHINES, 2.0 * float(cpu.max()))
        return Configuration(cpu=busy, memory_bytes=warm, machines=MACHINES)
    return Configuration()


def _means(runs: Sequence[Measures]) -> dict[str, float]:
    return {key: sum(map(value, runs)) / len(runs) for key, (_, _, value) in COMPARED.items()}


def _opponent(name: str, mine: Sequence[Measures], theirs: Sequence[Measures]) -> Opponent:
    ratios = {key: _ratio(key, mine, theirs) for key in COMPARED}
    return Opponent(name, _means(theirs), ratios, tie=list(mine) == list(theirs))


def _ratio(key: str, mine: Sequence[Measures], theirs: Sequence[Measures]) -> Ratio:
    import numpy as np

    from nubes.workloads.draws import generator

    _, least, value = COMPARED[key]
    logs = np.array([log((value(b) + least) / (value(a) + least)) for a, b in zip(mine, theirs, strict=True)])
    drawn = generator(0, "trial", key).integers(len(logs), size=(RESAMPLES, len(logs)))
    low, high = np.percentile(logs[drawn].mean(axis=1), (2.5, 97.5))
    return Ratio(exp(float(low)), exp(float(logs.mean())), exp(float(high)))
