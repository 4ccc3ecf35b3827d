"""What serving a workload comes to: times to tokens, requests within an objective, memory, dollars."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from nubes.replay.measures import PERCENTILES, Percentiles

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nubes.drivers.sim.llm import Instance, Served
    from nubes.replay.llm.slo import Slo

MILLION = 1e6
TICK_STEPS = 512  # steps between two words on progress


class Measures(msgspec.Struct, frozen=True):
    """Times in seconds, of served requests; rates over the time from the first arrival to the last answer."""

    requests: int
    unserved: int  # refused, or too long for any engine
    ttft_s: Percentiles
    tpot_s: Percentiles  # a request's mean time between tokens
    gap_s: Percentiles  # single times between two tokens
    latency_s: Percentiles
    attained: float | None  # share of all requests within the objective
    goodput: float | None  # requests a second within the objective
    requests_per_s: float
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    kv_mean: float  # share of KV memory in use, over the time of all steps
    kv_peak: float
    prefix_hits: float  # share of prompt tokens whose KV was there
    preemptions: int
    busy: float  # share of the time that engines, or the stages of their pipelines, were in a step
    dollars: float
    dollars_per_million: float  # tokens, of prompts and answers together
    dollars_per_million_output: float


class Meter:
    """Watches engines: how much of their KV is used, and how far the workload has come."""

    def __init__(self, seconds: float, tick: Callable[[float], None]) -> None:
        self.seconds = max(seconds, 1e-9)
        self.tick = tick
        self.used = 0.0  # sums over steps
        self.steps = 0
        self.peak = 0.0

    def __call__(self, instance: Instance, now: float) -> None:
        pool = instance.scheduler.state.pool
        share = (pool.size - len(pool.free) - len(pool.idle)) / pool.size
        self.used += share
        self.steps += 1
        if share > self.peak:
            self.peak = share
        if not self.steps % TICK_STEPS:
            self.tick(min(now / self.seconds, 1.0))


def measures(served: Served, meter: Meter, instances: int, price: float, slo: Slo | None) -> Measures:
    """All measures of one outcome, at `price` dollars an hour."""
    import numpy as np

    workload = served.workload
    done = ~np.isnan(served.end_s)
    seconds = max(served.seconds, workload.seconds, 1e-9)
    prompt, output = int(workload.prompt[done].sum()), int(workload.output[done].sum())
    dollars = price * seconds / 3600.0
    met = None if slo is None else slo.met(served)
    return Measures(
        requests=workload.requests,
        unserved=int((~done).sum()),
        ttft_s=percentiles(served.ttft_s),
        tpot_s=percentiles(served.tpot_s),
        gap_s=weighted(served.gaps_s, served.gap_counts),
        latency_s=percentiles(served.latency_s),
        attained=None if met is None else float(met.mean()),
        goodput=None if met is None else float(met.sum() / seconds),
        requests_per_s=float(done.sum() / seconds),
        prompt_tokens_per_s=prompt / seconds,
        output_tokens_per_s=output / seconds,
        kv_mean=meter.used / max(meter.steps, 1),
        kv_peak=meter.peak,
        prefix_hits=float(served.cached[done].sum() / max(prompt, 1)),
        preemptions=served.preemptions,
        busy=served.busy_s / (seconds * instances),
        dollars=dollars,
        dollars_per_million=dollars * MILLION / max(prompt + output, 1),
        dollars_per_million_output=dollars * MILLION / max(output, 1),
    )


def percentiles(values: NDArray[np.float64]) -> Percentiles:
    """Of those that are numbers."""
    import numpy as np

    values = values[~np.isnan(values)]
    return Percentiles(*np.percentile(values, PERCENTILES).tolist()) if len(values) else Percentiles(0.0, 0.0, 0.0, 0.0)


def weighted(values: NDArray[np.float64], counts: NDArray[np.int64]) -> Percentiles:
    """Of values that each stand for a count of equal ones."""
    import numpy as np

    if not len(values):
        return Percentiles(0.0, 0.0, 0.0, 0.0)
    order = np.argsort(values)
    upto = np.cumsum(counts[order])
    at = np.searchsorted(upto, np.array(PERCENTILES) / 100.0 * upto[-1])
    return Percentiles(*values[order][np.minimum(at, len(values) - 1)].tolist())
