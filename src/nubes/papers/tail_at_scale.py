"""The Tail at Scale: late requests get copies, slow replicas probation; in simulation and between live instances."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nubes.papers import Claim, Context, Result, above, at_least, at_most, below, between, reproduction
from nubes.serving.fanout import slow_share
from nubes.serving.models import Leaf, Tree
from nubes.serving.policies.tail_at_scale import PAPER

if TYPE_CHECKING:
    from nubes.drivers.sim.serving import Fanned

LEAVES, STALLS, STALL_S = 100, 0.01, 1.0
SLOW_S = STALL_S / 2.0
REPLICAS = 20  # of the leaf that queues
HEDGE = "tail-at-scale(percentile=95)"
CLONES = "tail-at-scale(delay=1us,budget=1,copies=1)"

AMPLIFIED = Claim(
    "When a request waits for 100 leaves, what is slow once in 100 makes most requests slow.",
    "share of whole requests with a stalled leaf",
    f"1 - (1 - q)^n: {slow_share(STALLS, LEAVES):.3f}",
    between(0.60, 0.66),
    "63 %",
)
HEDGED = Claim(
    "Copies of requests later than the 95th percentile cut the tail of the whole.",
    "99.9th percentile of the latency of whole requests, sent once / hedged, up to two copies of a leaf request",
    "none",
    at_least(10.0),
    "1800 to 74 ms",
)
SINGLE = Claim(
    "With one copy the tail of a leaf is cut as much; the whole still sees both copies stall, once in 100.",
    "99.9th percentile of the latency of leaf requests, sent once / hedged with one copy",
    "none",
    at_least(10.0),
)
EXTRA = Claim(
    "For a few requests more.", "copies / leaf requests, up to two copies of each", "none", at_most(0.06), "2 %"
)
TIED = Claim(
    "Where queueing dominates, tied copies beat hedged ones.",
    "99th percentile of latency at 70 % load, tied / hedged",
    HEDGE,
    below(1.0),
    "median 16 %, p99.9 almost 40 % lower than sent once",
)
TWICE = Claim(
    "And hardly anything is done twice.",
    "tied requests of which both copies were begun",
    "1: all of them",
    below(0.02),
    "less than 1 % more disk work",
)
ENOUGH = Claim(
    "Not waiting for the last leaves halves the tail at least.",
    "99th percentile of latency, all leaves / 95 % of them",
    "all leaves",
    at_least(2.0),
    "140 / 70 ms",
)
HARM = Claim(
    "At 90 % load, copies without a budget do harm.",
    "99th percentile of latency, a copy of everything at once / sent once",
    "none",
    above(1.0),
)
BUDGET = Claim(
    "With a budget they do not.",
    "99th percentile of latency at 90 % load, hedged / sent once",
    "none",
    at_most(1.05),
)
PAUSED = Claim(
    "Live, of four instances one is stopped for 200 ms now and then: hedging hides it.",
    "99th percentile of latency, sent once / hedged",
    "none",
    at_least(5.0),
)
WORK = Claim("For little more work.", "calls dispatched a second time / calls", "none", below(0.06))
OUT = Claim(
    "Live, an instance that stays slow is on probation soon.",
    "seconds from when it got slow to the last call that it delayed",
    "none",
    below(5.0),
)
BACK = Claim(
    "And takes its share again once it is not.",
    "its share of calls after its recovery / a fair share",
    "none",
    at_least(0.5),
)
CLAIMS = (AMPLIFIED, HEDGED, SINGLE, EXTRA, TIED, TWICE, ENOUGH, HARM, BUDGET, PAUSED, WORK, OUT, BACK)


@reproduction(PAPER, claims=CLAIMS, area="serving", seam="hedging, balancing", mode="both")
def run(ctx: Context) -> Iterator[Result]:
    """Fan-out with stalls and leaves that queue simulated; then instances that are stopped, and one that is slow."""
    yield from stalled(ctx)
    yield from queued(ctx)
    from nubes.papers.tail_at_scale_live import live

    yield from live(ctx)


def stalled(ctx: Context) -> Iterator[Result]:
    """100 leaves, of which each stalls once in 100 requests."""
    leaf = Leaf(stalls=STALLS, stall_s=STALL_S)
    requests = ctx.pick(5000, 20_000)
    texts = ("none", HEDGE, "tail-at-scale(percentile=95,copies=1)")
    rows = [
        [
            *(simulated(Tree(LEAVES, requests=requests), leaf, text, seed) for text in texts),
            simulated(Tree(LEAVES, requests=requests, enough=0.95), leaf, "none", seed),
        ]
        for seed in ctx.each("100 leaves that stall")
    ]
    about = f"{requests:,} requests to {LEAVES} leaves, lognormal around 10 ms, 1 % stalls of {STALL_S:g} s"
    said = {
        AMPLIFIED: [float((once.latency_s > SLOW_S).mean()) for once, *_ in rows],
        HEDGED: [tail(once, 0.999) / tail(hedged, 0.999) for once, hedged, *_ in rows],
        SINGLE: [tail(once, 0.999, leaves=True) / tail(one, 0.999, leaves=True) for once, _, one, _ in rows],
        EXTRA: [hedged.copies / hedged.asked for _, hedged, *_ in rows],
        ENOUGH: [tail(once, 0.99) / tail(most, 0.99) for once, *_, most in rows],
    }
    for claim, values in said.items():
        yield ctx.result(claim, values, about, "simulated")


def queued(ctx: Context) -> Iterator[Result]:
    """A leaf with replicas that work on one request at a time."""
    leaf = Leaf(sigma=1.0, queues=True, replicas=REPLICAS)
    requests = ctx.pick(100_000, 1_000_000)

    def at(load: float, text: str, seed: int) -> Fanned:
        tree = Tree(1, rate=load * REPLICAS / leaf.mean_s, requests=requests)
        return simulated(tree, leaf, text, seed)

    seeds = list(ctx.each("replicas that queue"))
    usual = [(at(0.7, "tail-at-scale(tied=true)", seed), at(0.7, HEDGE, seed)) for seed in seeds]
    about = f"{requests:,} requests to {REPLICAS} replicas chosen at random, one request at a time, lognormal"
    yield ctx.result(TIED, [tail(tied, 0.99) / tail(hedged, 0.99) for tied, hedged in usual], about, "simulated")
    yield ctx.result(TWICE, [tied.doubled / tied.asked for tied, _ in usual], about, "simulated")
    busy = [[at(0.9, text, seed) for text in ("none", CLONES, HEDGE)] for seed in seeds]
    yield ctx.result(HARM, [tail(clones, 0.99) / tail(once, 0.99) for once, clones, _ in busy], about, "simulated")
    yield ctx.result(BUDGET, [tail(hedged, 0.99) / tail(once, 0.99) for once, _, hedged in busy], about, "simulated")


def simulated(tree: Tree, leaf: Leaf, hedging: str, seed: int) -> Fanned:
    from nubes.drivers.sim.serving import simulate_leaves
    from nubes.kernel.policy import make

    return simulate_leaves(tree, leaf, make("hedging", hedging), seed)


def tail(done: Fanned, q: float, leaves: bool = False) -> float:
    """A quantile of the latency of whole requests, or of leaf requests, in seconds."""
    import numpy as np

    return float(np.quantile(done.leaf_latency_s if leaves else done.latency_s, q))
