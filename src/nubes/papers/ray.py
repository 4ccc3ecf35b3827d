"""Ray: bottom-up scheduling, locality and lineage, in simulation and on worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from math import exp, log
from statistics import NormalDist

from nubes.data.tasks.controller import Tasks
from nubes.data.tasks.models import Hardware, Work
from nubes.data.tasks.policies.ray import PAPER
from nubes.data.tasks.spec import Task
from nubes.drivers.sim.tasks import Simulation
from nubes.kernel.rng import rng
from nubes.papers import Claim, Context, Result, at_least, at_most, below, between, ray_live, reproduction

NODES, TASKS, RATE, RUN_S = 10, 1_000, 12.5, 0.01  # half of what the links carry if every input crosses one
LOW_BYTES, HIGH_BYTES = 10e6, 100e6
SIZES, EMPTY_S, DECISION_S, WINDOW = (10, 30, 100), 50e-6, 20e-6, 8
SIGMA = 1.0

LOCALITY = Claim(
    "With inputs of 10 to 100 MB, tasks end an order of magnitude sooner when they go where those are.",
    "mean latency of a task, random placement / bottom-up",
    "random",
    at_least(10.0),
    "1 to 2 orders of magnitude",
)
BLIND = Claim(
    "That is due to locality, not to where decisions are taken.",
    "mean latency of a task, bottom-up without locality / bottom-up",
    "locality-blind",
    at_least(10.0),
    "1 to 2 orders of magnitude",
)
LINEAR = Claim(
    "Bottom-up scheduling scales linearly to 100 nodes.",
    "throughput of 10, 30 and 100 nodes / so many times that of one, where furthest from 1",
    "linear",
    between(0.9, 1.1),
    "near-linear, 1.8 million tasks/s on 100 nodes",
)
CENTRAL = Claim(
    "A central scheduler that takes 20 us for a decision saturates at 50,000 tasks a second.",
    "throughput of 100 nodes under a central scheduler / 50,000 a second",
    "central",
    between(0.95, 1.01),
)
TASK_RATE = Claim(
    "Live, empty tasks run as fast as in the standard library's process pool, though they can be lost and made again.",
    "empty tasks a second with 2 workers, nubes.tasks / ProcessPoolExecutor",
    "concurrent.futures.ProcessPoolExecutor(2)",
    at_least(1.0),
)
ZERO_COPY = Claim(
    "A task reads an array of 100 MB without copying it.",
    "median time that an input of 100 MB adds to a task, ms",
    "a task with a small input",
    below(5.0),
)
LINEAGE = Claim(
    "When a worker that holds 200 chained objects is killed, all of them are made again, and they are equal.",
    "share of the 200 objects that ran again and are equal",
    "no lineage: 0",
    at_least(1.0),
    "all",
)
REPLAY = Claim(
    "An actor with a checkpoint every 100 calls replays at most 100 after its worker was killed.",
    "most calls replayed after a kill",
    "restart without a checkpoint: all calls so far",
    at_most(100.0),
    "500 in place of 10,000",
)
WAIT = Claim(
    "A wait(1) loop over simulations of lognormal length beats rounds with a barrier by the expected factor.",
    "time of rounds / time of the loop / (mean of the longest of a round / mean of all)",
    "barrier-synchronous rounds",
    between(0.9, 1.1),
)
WAIT_LIVE = Claim(
    "The same on worker processes, with the factor of the lengths drawn.",
    "time of rounds / time of the loop / (sum of the longest of each round * workers / sum of all)",
    "barrier-synchronous rounds",
    between(0.9, 1.1),
)
CLAIMS = (LOCALITY, BLIND, LINEAR, CENTRAL, WAIT, TASK_RATE, ZERO_COPY, LINEAGE, REPLAY, WAIT_LIVE)


@reproduction(PAPER, claims=CLAIMS, area="data", seam="task-placement", mode="both")
def run(ctx: Context) -> Iterator[Result]:
    """Placement and throughput simulated, then lineage, checkpoints and wait(k) live."""
    found = [[latency(name, seed) for name in ("bottom-up", "random", "locality-blind")] for seed in ctx.each("inputs")]
    about = f"{NODES} nodes, links of 1 Gbit/s, {TASKS:,} tasks of {RUN_S * 1e3:g} ms, each with one input of 10 to "
    about += f"100 MB on a random node; {RATE:g} arrive a second, on random nodes"
    yield ctx.result(LOCALITY, [row[1] / row[0] for row in found], about, "simulated")
    yield ctx.result(BLIND, [row[2] / row[0] for row in found], about, "simulated")
    ctx.say("tasks a second of up to 100 nodes")
    each = ctx.pick(200, 1_000)
    one = throughput("bottom-up", 1, each)
    shares = [throughput("bottom-up", nodes, each) / (nodes * one) for nodes in SIZES]
    about = f"empty tasks of {EMPTY_S * 1e6:g} us, {WINDOW} outstanding on each node; {one:,.0f} a second on one node"
    yield ctx.result(LINEAR, [max(shares, key=lambda share: abs(share - 1.0))], about, "simulated")
    central = throughput("central", SIZES[-1], each)
    yield ctx.result(CENTRAL, [central * DECISION_S], f"{about}; {central:,.0f} on 100 nodes", "simulated")
    rounds = ctx.pick(300, 2_000)
    factors = [rounds_over_loop(seed, rounds) / expected_factor(NODES) for seed in ctx.each("waiting for the first")]
    about = f"{NODES} nodes, {rounds} rounds, lognormal with sigma {SIGMA:g}; factor {expected_factor(NODES):.3g}"
    yield ctx.result(WAIT, factors, about, "simulated")
    yield from live(ctx)


def live(ctx: Context) -> Iterator[Result]:
    count = ctx.pick(20_000, 100_000)
    rates = [ray_live.rates(count) for _ in ctx.each("empty tasks")]
    about = f"{count:,} empty tasks on 2 workers: {max(ours for ours, _ in rates):,.0f} a second"
    yield ctx.result(TASK_RATE, [ours / theirs for ours, theirs in rates], about, "live")
    added = [ray_live.added_ms(ctx.pick(30, 200)) for _ in ctx.each("an array of 100 MB")]
    yield ctx.result(ZERO_COPY, added, "a task that reads one number of an array of 100 MB", "live")
    remade = [ray_live.remade(200) for _ in ctx.each("killing a worker with 200 objects")]
    yield ctx.result(LINEAGE, remade, "200 arrays of 160 kB, each made from the one before; kill -9", "live")
    kills = ctx.pick(5, 20)
    replays = [ray_live.replays(seed, kills) for seed in ctx.each("killing an actor's worker")]
    yield ctx.result(REPLAY, [float(max(row)) for row in replays], f"{kills} kills after 100 to 500 calls", "live")
    rounds = ctx.pick(40, 100)
    factors = [ray_live.rounds_over_loop(seed, rounds, SIGMA) for seed in ctx.each("waiting for the first, live")]
    yield ctx.result(WAIT_LIVE, factors, f"4 workers, {rounds} rounds of sleeps, lognormal, 50 ms on average", "live")


def latency(placement: str, seed: int) -> float:
    """Mean seconds between a task's submission and its end."""
    draw = rng(seed, "ray", "locality")
    simulation = Simulation(Tasks(placement), Hardware(NODES))
    works, now = [], 0.0
    for number in range(TASKS):
        size = int(exp(draw.uniform(log(LOW_BYTES), log(HIGH_BYTES))))
        simulation.put(f"input {number}", draw.randint(1, NODES), size)
        now += draw.expovariate(RATE)
        works.append(Work(Task(str(number), "task", (f"input {number}",)), now, draw.randint(1, NODES), RUN_S))
    for work in works:
        simulation.submit(work)
    simulation.run()
    return sum(simulation.done_s[work.task.id] - work.at_s for work in works) / TASKS


def throughput(placement: str, nodes: int, each: int) -> float:
    """Empty tasks a second, between a tenth and nine tenths of them, when every node submits as fast as they end."""
    left = dict.fromkeys(range(1, nodes + 1), each)

    def next_of(node: int, now: float) -> None:
        if left[node]:
            left[node] -= 1
            simulation.submit(Work(Task(f"{node}-{left[node]}", "empty"), now, node, EMPTY_S))

    hardware = Hardware(nodes, local_decision_s=DECISION_S, global_decision_s=DECISION_S)
    simulation = Simulation(Tasks(placement), hardware, lambda work, now: next_of(work.node, now))
    for node in left:
        for _ in range(WINDOW):
            next_of(node, 0.0)
    simulation.run()
    ends = sorted(simulation.done_s.values())
    first, last = len(ends) // 10, len(ends) * 9 // 10
    return (last - first) / (ends[last] - ends[first])


def expected_factor(workers: int) -> float:
    """Mean of the longest of `workers` lognormal times over their mean."""
    steps, normal = 20_000, NormalDist()
    longest = sum(exp(SIGMA * normal.inv_cdf(((i + 0.5) / steps) ** (1 / workers))) for i in range(steps)) / steps
    return longest / exp(SIGMA**2 / 2)


def rounds_over_loop(seed: int, rounds: int) -> float:
    """Simulated time of rounds, each of which waits for all of its tasks, over that of a loop which waits for one."""
    draw = rng(seed, "ray", "wait")
    times = [draw.lognormvariate(0.0, SIGMA) for _ in range(rounds * NODES)]

    def took(at_once: int) -> float:
        """Submits so many more whenever so many have ended."""
        left, ended = list(enumerate(times))[::-1], 0

        def submit(count: int, now: float) -> None:
            for _ in range(min(count, len(left))):
                number, run_s = left.pop()
                simulation.submit(Work(Task(str(number), "simulation"), now, 0, run_s))

        def done(work: Work, now: float) -> None:
            nonlocal ended
            ended += 1
            if ended % at_once == 0:
                submit(at_once, now)

        simulation = Simulation(Tasks("central"), Hardware(NODES), done)
        submit(NODES, 0.0)
        return simulation.run()

    return took(NODES) / took(1)
