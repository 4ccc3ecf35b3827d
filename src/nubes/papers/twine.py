"""Twine: a quorum service that is asked before it is disturbed, and private pools against one with entitlements."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from heapq import heappop, heappush
from math import inf
from statistics import mean, median

import msgspec

from nubes.cluster.entitlements import Entitlement, Region
from nubes.cluster.policies.protean import vms
from nubes.cluster.policies.twine import PAPER
from nubes.cluster.seams import MachineView, Request
from nubes.kernel.rng import rng
from nubes.papers import Claim, Context, Result, above, at_least, at_most, reproduction
from nubes.papers.twine_live import QUORUM, REPLICAS, WORK_S, measured
from nubes.workloads import openb
from nubes.workloads.openb import Node, Pod

RUNS, AT_ONCE = 20, 4  # live runs for each seed, and how many of them side by side
BUSY_S = 10_300_000.0  # from when on openb's pods arrive in earnest: its last thirty days
DENSER, LONGEST_S = 24.0, 86_400.0
PATIENCE_S = 600.0  # how long a pod waits for its GPUs before it is turned away
TURNED_AWAY = 0.05  # of the pods: where private pools and one pool are compared
HALVINGS = 7  # of the range of loads
QUOTA = 2.0  # an entitlement, in private pools
EVERY_S, MOVES = 600.0, 20  # how often the rebalancer runs, and what it may move each time

REGARDLESS = "updates and maintenance that go on regardless of the application"
DROPS = Claim(
    "Operations that ignore the application cost it its quorum.",
    f"share of {RUNS} runs in which the quorum was lost at some time, without TaskControl",
    "-",
    above(0.5),
)
STAYS = Claim(
    "Asked before, it never loses it.",
    f"share of {RUNS} runs in which the quorum was there all the time, with TaskControl",
    REGARDLESS,
    at_least(1.0),
    "let stateful services run on the shared pool",
)
TAKES = Claim(
    "And all is done in at most twice the time.",
    "median time until update and maintenance are done, with / without TaskControl",
    REGARDLESS,
    at_most(2.0),
)
POOLED = "private pools, dealt by each team's share of the GPU work, the machines the same together"
ADMITS = Claim(
    "One pool with entitlements takes in more work than private pools, pods being turned away as seldom.",
    f"GPU work a second of the pods admitted, one pool / private pools, each at the load where {TURNED_AWAY:.0%} "
    "of the pods are turned away",
    POOLED,
    at_least(1.15),
    "over half the fleet shared",
)


@reproduction(PAPER, claims=(DROPS, STAYS, TAKES, ADMITS), area="cluster", seam="disruption", mode="both")
def run(ctx: Context) -> Iterator[Result]:
    """Three live replicas under disturbances; openb's pods simulated."""
    found = []
    for seed in ctx.each("updating a quorum service in the middle of maintenance"):
        with ThreadPoolExecutor(AT_ONCE) as pool:
            sides = []
            for name, policy in (("regardless", ""), ("asked", f"quorum(up={QUORUM})")):
                jobs = [
                    pool.submit(measured, ctx.folder / f"{name}-{seed}-{i}", policy, rng(seed, "twine live", i))
                    for i in range(RUNS)
                ]
                sides.append([job.result() for job in jobs])
        plain, asked = sides
        found.append(
            (
                mean(share < 1.0 for share, _ in plain),
                mean(share == 1.0 for share, _ in asked),
                median(took for _, took in asked) / median(took for _, took in plain),
            )
        )
    about = (
        f"{REPLICAS} replicas in processes, {QUORUM} are a quorum; a rolling update and the maintenance of 2 hosts, "
    )
    about += f"{WORK_S:g} s each, begun at random times within it; quorum sampled by connecting"
    for claim, values in zip((DROPS, STAYS, TAKES), zip(*found, strict=True), strict=True):
        yield ctx.result(claim, values, about, "live")
    path = openb.folder()
    if path is None:
        yield from ctx.all_unmeasured([ADMITS], "set NUBES_TRACES to a folder with alibaba-gpu-2023", "simulated")
        return
    pods, nodes = compressed(openb.pods(path)), [node for node in openb.nodes(path) if node.gpu]
    pooled = [against(pods, nodes, seed) for seed in ctx.each("private pools against one")]
    about = f"{len(pods):,} openb pods with GPUs of the last 30 days, {DENSER:g} times as dense, at most a day long; "
    about += (
        "openb nodes, drawn until their GPUs are the mean demand; teams, which the trace has not, drawn by quality "
    )
    about += f"of service and size; quotas are {QUOTA:g} private pools; who waits {PATIENCE_S:g} s is turned away"
    yield ctx.result(ADMITS, pooled, about, "simulated")


def team(pod: Pod) -> str:
    """Who a pod is taken to be of."""
    qos = pod.qos if pod.qos in ("LS", "BE") else "other"
    return f"{qos}, {'part of a GPU' if pod.gpu < 1 else 'a GPU' if pod.gpu == 1 else 'several GPUs'}"


def compressed(pods: Sequence[Pod]) -> list[Pod]:
    """The pods with GPUs of the busy days, closer together, the longest cut."""
    kept = [pod for pod in pods if pod.gpu and pod.arrival_s >= BUSY_S and pod.seconds]
    return [
        Pod(pod.name, pod.cpu, pod.memory_bytes, pod.gpu, pod.qos, (pod.arrival_s - BUSY_S) / DENSER,
            min(pod.seconds, LONGEST_S))
        for pod in kept
    ]  # fmt: skip


def against(pods: Sequence[Pod], nodes: Sequence[Node], seed: int) -> float:
    """GPU work a second that is admitted, one pool / private pools."""
    draw = rng(seed, "twine nodes")
    length_s = pods[-1].arrival_s
    demand: dict[str, float] = {}
    largest: dict[str, float] = {}
    for pod in pods:
        demand[team(pod)] = demand.get(team(pod), 0.0) + pod.gpu * pod.seconds / length_s
        largest[team(pod)] = max(largest.get(team(pod), 0.0), pod.gpu)
    machines: list[MachineView] = []
    mine: dict[str, list[MachineView]] = {name: [] for name in demand}
    gpus = dict.fromkeys(demand, 0.0)
    while sum(gpus.values()) < sum(demand.values()):
        node = draw.choice(nodes)
        machine = MachineView(len(machines), node.cpu, node.memory_bytes, float(node.gpu))
        # To who lacks most of its share, or has nothing yet that its largest pod fits on.
        short = [n for n in demand if node.gpu >= largest[n] and all(m.gpu < largest[n] for m in mine[n])]
        owner = max(short or demand, key=lambda name: demand[name] - gpus[name])
        mine[owner].append(machine)
        machines.append(machine)
        gpus[owner] += node.gpu

    def apart() -> dict[str, Region]:
        private = {name: Region([Entitlement(name, inf, 2**62, inf)], vms, rng(seed, name)) for name in demand}
        for name, owned in mine.items():
            for machine in owned:
                private[name].join(machine)
        return private

    def together() -> dict[str, Region]:
        quotas = [Entitlement(name, inf, 2**62, max(QUOTA * gpus[name], largest[name])) for name in demand]
        shared = Region(quotas, vms, rng(seed, "shared"))
        for machine in machines:
            shared.join(machine)
        return dict.fromkeys(demand, shared)

    return bearable(pods, together) / bearable(pods, apart)


def bearable(pods: Sequence[Pod], regions: Callable[[], dict[str, Region]]) -> float:
    """GPU work a second that is admitted, at the highest load found at which no more than the share is turned away."""
    low, high, best = 0.0, 4.0, 0.0
    for _ in range(HALVINGS):
        load = (low + high) / 2
        offered = [msgspec.structs.replace(pod, arrival_s=pod.arrival_s / load) for pod in pods]
        waits = admitted(offered, regions())
        if len(waits) >= (1.0 - TURNED_AWAY) * len(pods):
            low, best = load, sum(pods[i].gpu * pods[i].seconds for i in waits) / offered[-1].arrival_s
        else:
            high = load
    return best


def admitted(pods: Sequence[Pod], regions: dict[str, Region]) -> dict[int, float]:
    """Pod -> how long it waited, of those that got their place in time. Teams' pods go first come, first served."""
    events: list[tuple[float, int, int]] = [(pod.arrival_s, 1, i) for i, pod in enumerate(pods)]
    requests = [Request(team(pod), pod.cpu, pod.memory_bytes, pod.gpu) for pod in pods]
    queues: dict[str, deque[int]] = {name: deque() for name in regions}
    waited: dict[int, float] = {}
    balance_s = EVERY_S
    while events:
        now, arrives, i = heappop(events)
        name = team(pods[i])
        if arrives:
            queues[name].append(i)
        else:
            regions[name].leave(i)
        if now >= balance_s:
            balance_s = now + EVERY_S
            for region in {id(region): region for region in regions.values()}.values():
                region.rebalance(MOVES)
        for name, queue in queues.items():
            while queue:
                first = queue[0]
                wait_s = now - pods[first].arrival_s
                if wait_s <= PATIENCE_S:
                    if regions[name].place(first, name, requests[first]) is None:
                        break
                    waited[first] = wait_s
                    heappush(events, (now + pods[first].seconds, 0, first))
                queue.popleft()
    return waited
