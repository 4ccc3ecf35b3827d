"""Workloads that are made up, from published fits where there are any: they stand in where traces are absent."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log, pi
from typing import TYPE_CHECKING

from nubes.functions.spec import FunctionSpec
from nubes.kernel.errors import UsageError
from nubes.kernel.units import seconds as parse
from nubes.workloads.draws import HUAWEI_GAP_S, generator, lognormal, starts, weibull_of
from nubes.workloads.workload import Workload

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DAY_S = 86_400.0
TIMEOUT_S = 86_400.0

# Azure Functions 2019, as "Serverless in the Wild" (USENIX ATC 2020) reports it.
AZURE_RATE = ((0.0, 1 / DAY_S), (0.45, 1 / 3600), (0.81, 1 / 60), (0.96, 0.2), (1.0, 2.0))  # share of apps -> calls/s
AZURE_TRIGGERS = (
    ("http", 0.55),
    ("timer", 0.16),
    ("queue", 0.15),
    ("orchestration", 0.07),
    ("others", 0.05),
    ("event", 0.02),
)
AZURE_EXEC = (-0.38, 2.36)  # LogNormal of functions' average execution times, of log seconds
AZURE_MEMORY = (11.652, 0.221, 107.083)  # Burr XII of apps' memory: c, k, MB
TIMER_PERIODS_S = (60.0, 300.0, 600.0, 900.0, 1800.0, 3600.0)
EXEC_SPREAD = 0.5  # of one function's execution times around its average, as a share of it
EXEC_S = (0.001, 300.0)  # averages are kept within these
DIURNAL = 0.5  # how far the rate of calls swings around its mean over a day


def azure_like(
    functions: int = 200, length: str | float = "2h", seed: int = 0, start_s: float | None = None
) -> Workload:
    """Functions as on Azure in 2019: few make nearly all calls, timers tick, the rest follow the time of day.

    Popularity, triggers, execution times and memory follow the published distributions; start times are Huawei's.
    """
    seconds = parse(length)
    shares, rates = zip(*AZURE_RATE, strict=True)
    build = _Builder("azure-like", seed, seconds, start_s)
    for index in range(functions):
        import numpy as np

        draw = generator(seed, "azure-like", index)
        trigger = AZURE_TRIGGERS[int(np.searchsorted(np.cumsum([p for _, p in AZURE_TRIGGERS]), draw.random()))][0]
        rate = exp(np.interp(draw.random(), shares, np.log(rates)))
        if trigger == "timer":
            period_s = min(TIMER_PERIODS_S, key=lambda p: abs(log(p * rate)))
            arrivals = np.arange(draw.random() * period_s, seconds, period_s)
        else:
            arrivals = _diurnal(draw, rate, seconds)
        c, k, scale = AZURE_MEMORY
        megabytes = scale * ((1.0 - draw.random()) ** (-1.0 / k) - 1.0) ** (1.0 / c)
        average = min(max(exp(draw.normal(*AZURE_EXEC)), EXEC_S[0]), EXEC_S[1])
        build.add(f"app{index}/f", draw, arrivals, average, trigger, int(min(megabytes, 1536.0) * 2**20))
    return build.workload(
        "Made up like Azure Functions 2019: popularity, triggers, execution times, memory, time of day"
    )


def huawei_like(
    functions: int = 100, length: str | float = "2h", seed: int = 0, start_s: float | None = None
) -> Workload:
    """Functions as in Huawei's study: 60 % timers; the other functions' calls come in bursts.

    Gaps between a function's calls are Weibull, with the shape published for gaps between cold starts.
    """
    import numpy as np

    seconds = parse(length)
    shape, _ = weibull_of(*HUAWEI_GAP_S)
    build = _Builder("huawei-like", seed, seconds, start_s)
    for index in range(functions):
        draw = generator(seed, "huawei-like", index)
        timer = index < 0.6 * functions
        mean_s = float(draw.choice(TIMER_PERIODS_S)) if timer else exp(draw.uniform(log(5.0), log(1800.0)))
        if timer:
            arrivals = np.arange(draw.random() * mean_s, seconds, mean_s)
        else:
            arrivals = _renewal(lambda n, d=draw, m=mean_s: _weibull_gaps(d, shape, m, n), mean_s, seconds)  # type: ignore[misc]
        average = exp(draw.normal(log(0.1), 1.0))
        build.add(f"app{index}/f", draw, arrivals, average, "timer" if timer else "http", 256 << 20)
    return build.workload("Made up like Huawei's functions: mostly timers, calls in bursts")


def poisson(
    functions: int = 20, rate: float = 0.1, length: str | float = "1h", exec_s: float = 0.1, seed: int = 0,
    start_s: float | None = None,
) -> Workload:  # fmt: skip
    """Every function is called `rate` times a second on average, at random."""
    build = _Builder("poisson", seed, parse(length), start_s)
    for index in range(functions):
        draw = generator(seed, "poisson", index)
        arrivals = _renewal(lambda n, d=draw: d.exponential(1.0 / rate, n), 1.0 / rate, build.seconds)  # type: ignore[misc]
        build.add(f"poisson/f{index}", draw, arrivals, exec_s)
    return build.workload(f"Poisson arrivals, {rate:g} calls a second of each function")


def periodic(
    functions: int = 20, shortest: str | float = "5s", longest: str | float = "180s", length: str | float = "1h",
    exec_s: float = 0.1, seed: int = 0, start_s: float | None = None,
) -> Workload:  # fmt: skip
    """Timers with periods from `shortest` to `longest`, each a fixed factor from the next, at a random phase."""
    import numpy as np

    build = _Builder("periodic", seed, parse(length), start_s)
    for index, period_s in enumerate(np.geomspace(parse(shortest), parse(longest), functions)):
        draw = generator(seed, "periodic", index)
        arrivals = np.arange(draw.random() * period_s, build.seconds, period_s)
        build.add(f"periodic/f{index}", draw, arrivals, exec_s, "timer")
    return build.workload(f"Periodic calls, every {shortest} to every {longest}")


def bursty(
    functions: int = 20, burst: int = 20, gap: str | float = "60s", length: str | float = "1h", exec_s: float = 0.5,
    seed: int = 0, start_s: float | None = None,
) -> Workload:  # fmt: skip
    """Bursts of about `burst` calls within a second, `gap` apart on average."""
    import numpy as np

    build = _Builder("bursty", seed, parse(length), start_s)
    for index in range(functions):
        draw = generator(seed, "bursty", index)
        begins = _renewal(lambda n, d=draw: d.exponential(parse(gap), n), parse(gap), build.seconds)  # type: ignore[misc]
        begins = np.repeat(begins, draw.poisson(burst, len(begins)))
        arrivals = np.sort(begins + draw.random(len(begins)))
        build.add(f"bursty/f{index}", draw, arrivals[arrivals < build.seconds], exec_s, "queue")
    return build.workload(f"Bursts of about {burst} calls, {gap} apart on average")


GENERATORS: dict[str, Callable[..., Workload]] = {
    "azure-like": azure_like,
    "huawei-like": huawei_like,
    "poisson": poisson,
    "periodic": periodic,
    "bursty": bursty,
}


class _Builder:
    """Collects functions and their calls, then sorts the calls into one workload."""

    def __init__(self, name: str, seed: int, seconds: float, start_s: float | None) -> None:
        if seconds <= 0.0:
            raise UsageError(f"A workload of {seconds:g} s holds no calls.", "Give it a length: length=1h.")
        self.name, self.seed, self.seconds, self.start_s = name, seed, seconds, start_s
        self.specs: list[FunctionSpec] = []
        self.columns: list[tuple[NDArray[np.float64], NDArray[np.int32], NDArray[np.float64]]] = []

    def add(
        self, name: str, draw: np.random.Generator, arrivals: NDArray[np.float64], exec_s: float, trigger: str = "http",
        memory_bytes: int = 128 << 20,
    ) -> None:  # fmt: skip
        """A function called at `arrivals`, for times around `exec_s`."""
        import numpy as np

        took = lognormal(draw, exec_s, exec_s * EXEC_SPREAD, len(arrivals))
        self.columns.append((arrivals, np.full(len(arrivals), len(self.specs), np.int32), took))
        self.specs.append(
            FunctionSpec(
                name=name, trigger=trigger, memory_bytes=memory_bytes, timeout_s=TIMEOUT_S, startup_timeout_s=TIMEOUT_S
            )
        )

    def workload(self, source: str) -> Workload:
        import numpy as np

        if not self.columns:
            raise UsageError(f"{self.name} without functions holds no calls.", "Give it some: functions=20.")
        arrival_s, function, exec_s = (np.concatenate(parts) for parts in zip(*self.columns, strict=True))
        order = np.argsort(arrival_s, kind="stable")
        started = tuple(starts(self.seed, spec.name, self.start_s) for spec in self.specs)
        cold = f"starts take {self.start_s:g} s" if self.start_s is not None else "start times from Huawei's fit"
        return Workload(
            self.name, f"{source}; {cold} (seed {self.seed}).", tuple(self.specs), arrival_s[order], function[order],
            exec_s[order], started, self.seconds,
        )  # fmt: skip


def _renewal(gaps: Callable[[int], NDArray[np.float64]], mean_s: float, seconds: float) -> NDArray[np.float64]:
    """Times until `seconds` whose gaps are drawn by `gaps`."""
    import numpy as np

    parts = [np.zeros(1)]
    while parts[-1][-1] < seconds:
        parts.append(parts[-1][-1] + np.cumsum(gaps(64 + int(1.2 * seconds / mean_s))))
    times = np.concatenate(parts)[1:]
    return times[times < seconds]


def _weibull_gaps(draw: np.random.Generator, shape: float, mean_s: float, n: int) -> NDArray[np.float64]:
    """Gaps of that shape and mean."""
    from math import gamma

    return draw.weibull(shape, n) * (mean_s / gamma(1.0 + 1.0 / shape))


def _diurnal(draw: np.random.Generator, rate: float, seconds: float) -> NDArray[np.float64]:
    """Poisson arrivals whose rate follows the time of day: drawn at the highest rate, then thinned."""
    import numpy as np

    peak = rate * (1.0 + DIURNAL)
    times = np.sort(draw.random(draw.poisson(peak * seconds)) * seconds)
    now = rate * (1.0 + DIURNAL * np.sin(2.0 * pi * times / DAY_S))
    return times[draw.random(len(times)) * peak < now]
