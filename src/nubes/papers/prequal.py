"""Prequal: balancing by latency and requests in flight against CPU utilisation, simulated and with live workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nubes.papers import Claim, Context, Result, at_least, at_most, below, reproduction
from nubes.serving.models import Demand, Machines
from nubes.serving.policies.prequal import PAPER

if TYPE_CHECKING:
    from nubes.drivers.sim.serving import Balanced

DEADLINE_S = 5.0
WRR = Claim(
    "Balancing CPU utilisation, the tail is at its deadline once replicas need a little more than their own cores.",
    "99.9th percentile of latency at 1.03 times the allocation, seconds",
    "the deadline of 5 s",
    at_least(DEADLINE_S),
    "p99.9 hits the deadline by 1.03x",
)
CALM = Claim(
    "There Prequal degrades gently.",
    "99.9th percentile of latency at 1.03 times the allocation, seconds",
    "weighted-round-robin",
    below(1.5),
    "degrades gently up to 1.74x",
)
ERRORS = Claim("And misses no deadline.", "requests that missed theirs", "weighted-round-robin", at_most(0.0))
P90 = Claim(
    "Where half of the replicas are 2 times slower, latency tells more than requests in flight alone.",
    "90th percentile of latency, q = 0.84 / q = 0, at 0.75 times the allocation",
    "requests in flight only",
    at_most(0.9),
)
P99 = Claim(
    "Also at the tail.",
    "99th percentile of latency, q = 0.84 / q = 0, at 0.75 times the allocation",
    "requests in flight only",
    at_most(0.9),
)
ALIKE = Claim(
    "Where replicas are alike, requests in flight alone are as good or better.",
    "99th percentile of latency, q = 0 / q = 0.84, at 0.75 times the allocation",
    "q = 0.84",
    at_most(1.05),
)
ROBIN = Claim(
    "Live, with a hog that moves from worker to worker, its tail is shorter than taking turns gives.",
    "99th percentile of latency, prequal / round-robin",
    "round-robin",
    below(1.0),
)
WEIGHTED = Claim(
    "And than weighted turns.",
    "99th percentile of latency, prequal / weighted-round-robin",
    "weighted-round-robin",
    below(1.0),
    "about 2 times lower (YouTube)",
)
CLAIMS = (WRR, CALM, ERRORS, P90, P99, ALIKE, ROBIN, WEIGHTED)


@reproduction(PAPER, claims=CLAIMS, area="serving", seam="balancing", mode="both")
def run(ctx: Context) -> Iterator[Result]:
    """100 clients and 100 replicas on shared machines simulated, then live workers under a hog that moves."""
    seconds = ctx.pick(15.0, 60.0)
    peak = [
        [simulated(policy, 1.03, seconds, seed) for policy in ("weighted-round-robin", "prequal")]
        for seed in ctx.each("100 replicas beyond their allocation")
    ]
    workload = (
        "100 clients, 100 replicas of 8 cores, a fifth of them without spare cores, the others with 0 to 100 % more, "
        "drawn anew every second; work N(80, 80) ms"
    )
    yield ctx.result(WRR, [tail(wrr, 0.999) for wrr, _ in peak], workload, "simulated")
    yield ctx.result(CALM, [tail(ours, 0.999) for _, ours in peak], workload, "simulated")
    yield ctx.result(ERRORS, [float((~ours.ok).sum()) for _, ours in peak], workload, "simulated")
    mixed = [
        [simulated(policy, 0.75, seconds, seed, slow=0.5) for policy in ("prequal(q=0.84)", "prequal(q=0)")]
        for seed in ctx.each("half of them twice as slow")
    ]
    for claim, q in ((P90, 0.9), (P99, 0.99)):
        values = [tail(ours, q) / tail(theirs, q) for ours, theirs in mixed]
        yield ctx.result(claim, values, f"{workload}, double on half of the replicas", "simulated")
    alike = [
        [simulated(policy, 0.75, seconds, seed) for policy in ("prequal(q=0)", "prequal(q=0.84)")]
        for seed in ctx.each("all of them alike")
    ]
    yield ctx.result(ALIKE, [tail(rif, 0.99) / tail(ours, 0.99) for rif, ours in alike], workload, "simulated")
    from nubes.papers.prequal_live import live

    yield from live(ctx)


def simulated(policy: str, load: float, seconds: float, seed: int, slow: float = 0.0) -> Balanced:
    """That policy at every client."""
    from nubes.drivers.sim.serving import simulate_balancing
    from nubes.serving.texts import seeded

    demand = Demand(load, seconds, deadline_s=DEADLINE_S)
    return simulate_balancing(Machines(slow=slow), demand, lambda client: seeded("balancing", policy, client), seed)


def tail(done: Balanced, q: float) -> float:
    """A quantile of latency in seconds, after the first quarter, in which queues grow to what they are."""
    import numpy as np

    warm_s = done.arrival_s[-1] / 4.0
    return float(np.quantile(done.latency_s[done.arrival_s > warm_s], q))
