"""Many clients, each with a balancing policy of its own, and replicas that share their processors."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from math import erf, exp, inf, nan, pi, sqrt
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from nubes.drivers.sim.serving.replica import Shared
from nubes.kernel.rng import rng
from nubes.serving.models import Demand, Machines
from nubes.serving.seams import Balancing, Probe, ReplicaView
from nubes.workloads.draws import generator

COMPLETE, REDRAW, POLL, IDLE, GIVE_UP = range(5)
ARRIVES, ASKS, TELLS, RETURNS = range(4)  # what travels: a request, probes, answers to probes, an answer


@dataclass(frozen=True)
class Balanced:
    """What became of each request, in the order of arrival; arrays of one value each.

    `latency_s` is from arrival at the client to its answer, or the deadline where `ok` is False.
    """

    arrival_s: NDArray[np.float64]
    latency_s: NDArray[np.float64]
    ok: NDArray[np.bool_]
    replica: NDArray[np.int32]
    rif: NDArray[np.int32]  # requests that it found at its replica
    events: int
    wall_s: float


class _Client:
    """A client: its policy, what it sees of replicas, and the probes that requests wait for."""

    __slots__ = ("last_s", "policy", "views", "waiting")

    def __init__(self, policy: Balancing, replicas: int) -> None:
        self.policy = policy
        self.views = [ReplicaView(id) for id in range(replicas)]
        self.waiting: dict[int, list[Probe]] = {}  # request -> answers to its own probes
        self.last_s = 0.0


def simulate_balancing(machines: Machines, demand: Demand, make: Callable[[int], Balancing], seed: int = 0) -> Balanced:
    """Runs `demand` against `machines`; `make(client)` is each client's policy. The same arguments, the same outcome.

    All messages take as long, so they arrive in the order in which they are sent. A request that misses its deadline is
    given up at its replica and counts as an error.
    """
    begun = perf_counter()
    arrival_s, owner, work_s = _drawn(machines, demand, seed)
    n = len(arrival_s)
    arrivals, owners, works = [*arrival_s.tolist(), inf], owner.tolist(), work_s.tolist()
    latency: list[float] = [nan] * n
    placed: list[int] = [-1] * n  # request -> replica
    found: list[int] = [0] * n  # requests that were there before it
    ended = bytearray(n)  # 1: answered, 2: given up
    chance = rng(seed, "machines")
    count, deadline_s, network_s = machines.replicas, demand.deadline_s, demand.network_s
    slow = int(machines.slow * count)
    replicas = [Shared(machines.cores, machines.slowdown if id < slow else 1.0) for id in range(count)]
    full = set(rng(seed, "full").sample(range(count), round(machines.full * count)))
    clients = [_Client(make(id), count) for id in range(demand.clients)]
    first = clients[0].policy
    poll_s, waits, idle_s, timeout_s = first.poll_s, first.waits, first.idle_s, first.probe_timeout_s

    heap: list[tuple[float, int, int, int]] = []  # (when, what, of which, version)
    wire: deque[tuple[float, int, int, int, object]] = deque()  # (arrives, what, client, request, content)
    expiring: deque[int] = deque()  # requests in order of arrival
    wire_append, wire_next = wire.append, wire.popleft
    for id in range(count):
        if id not in full:
            heappush(heap, (0.0, REDRAW, id, 0))
    if poll_s:
        heappush(heap, (poll_s, POLL, 0, 0))
    if idle_s:
        heappush(heap, (idle_s, IDLE, 0, 0))
    next_request, now, events = 0, 0.0, 0
    arrives = arrivals[0]
    end = demand.seconds + deadline_s

    def send(request: int, client: _Client, answers: list[Probe], now: float) -> None:
        view = client.policy.choose(client.views, now, answers)
        placed[request] = view.id
        view.sent(now)
        client.policy.sent(view, now)
        wire_append((now + network_s, ARRIVES, 0, request, None))

    while True:
        at = wire[0][0] if wire else inf
        soonest = heap[0][0] if heap else inf
        if arrives <= at and arrives <= soonest:
            if arrives == inf:
                break
            now, request = arrives, next_request
            next_request += 1
            arrives = arrivals[next_request]
            who = owners[request]
            client = clients[who]
            client.last_s = now
            while expiring and arrivals[expiring[0]] + deadline_s <= now:
                late = expiring.popleft()
                if not ended[late]:
                    _give_up(late, placed[late], clients[owners[late]], replicas, heap, now, deadline_s)
                    ended[late] = 2
                    latency[late] = deadline_s
            expiring.append(request)
            asked = client.policy.probes(client.views, now)
            if asked:
                events += len(asked)
                wire_append((now + network_s, ASKS, who, request, asked))
                if waits:
                    client.waiting[request] = []
                    heappush(heap, (now + timeout_s, GIVE_UP, request, 0))
            events += 1
            if not (asked and waits):
                send(request, client, [], now)
        elif at <= soonest:
            if at == inf:
                break
            now, what, who, request, content = wire_next()
            if what == ARRIVES:
                if ended[request]:
                    continue
                id = placed[request]
                replica = replicas[id]
                found[request] = replica.rif
                if replica.take(request, works[request], now):
                    heappush(heap, (replica.due, COMPLETE, id, replica.version))
                events += 1
            elif what == RETURNS:
                if ended[request]:
                    continue
                client = clients[who]
                took = min(now - arrivals[request], deadline_s)
                fine = took < deadline_s
                latency[request] = took
                ended[request] = 1 if fine else 2
                view = client.views[placed[request]]
                view.answered(took, now)
                client.policy.answered(view, fine, took, now)
                events += 1
            elif what == ASKS:
                told = []
                for view in content:  # type: ignore[attr-defined]
                    replica = replicas[view.id]
                    rif = replica.rif
                    told.append((view, rif, replica.latency.at(rif, now)))
                events += len(told)
                wire_append((now + network_s, TELLS, who, request, told))
            else:
                client = clients[who]
                probed = client.policy.probed
                events += len(content)  # type: ignore[arg-type]
                for view, rif, latency_s in content:  # type: ignore[attr-defined]
                    probed(view, rif, latency_s, now)
                    if waits and request in client.waiting:
                        mine = client.waiting[request]
                        mine.append(Probe(view, rif, latency_s))
                        if len(mine) >= waits:
                            del client.waiting[request]
                            send(request, client, mine, now)
        else:
            now, kind, id, version = heappop(heap)
            if now > end:
                break
            if kind == COMPLETE:
                replica = replicas[id]
                if version != replica.version:
                    continue
                request = replica.done(now)
                if replica.due < inf:
                    heappush(heap, (replica.due, COMPLETE, id, replica.version))
                replica.latency.add(found[request], now - arrivals[request] - network_s, now)
                wire_append((now + network_s, RETURNS, owners[request], request, None))
            elif kind == REDRAW:
                replica = replicas[id]
                borrowed = machines.cores * machines.borrow * chance.random()
                if replica.becomes(machines.cores + borrowed, now) and replica.due < inf:
                    heappush(heap, (replica.due, COMPLETE, id, replica.version))
                heappush(heap, (now + machines.redraw_s * (0.5 + chance.random()), REDRAW, id, 0))
            elif kind == POLL:
                reports = [replica.report(poll_s, now) for replica in replicas]
                for client in clients:
                    for view, report in zip(client.views, reports, strict=True):
                        client.policy.reported(view, report, now)
                events += count * len(clients)
                heappush(heap, (now + poll_s, POLL, 0, 0))
            elif kind == IDLE:
                for who, client in enumerate(clients):
                    if client.last_s <= now - idle_s:
                        asked = client.policy.probes(client.views, now)
                        events += len(asked)
                        wire_append((now + network_s, ASKS, who, -1, asked))
                heappush(heap, (now + idle_s, IDLE, 0, 0))
            elif id in clients[owners[id]].waiting:  # too few of its probes were answered in time
                client = clients[owners[id]]
                send(id, client, client.waiting.pop(id), now)
            events += 1
    for request in range(n):
        if not ended[request]:
            latency[request] = deadline_s
    ok = np.frombuffer(bytes(ended), np.int8) == 1
    return Balanced(
        arrival_s, np.array(latency), ok, np.array(placed, np.int32), np.array(found, np.int32), events,
        perf_counter() - begun,
    )  # fmt: skip


def _give_up(
    request: int, id: int, client: _Client, replicas: list[Shared], heap: list[tuple[float, int, int, int]], now: float,
    deadline_s: float,
) -> None:  # fmt: skip
    """A request is at its deadline."""
    client.waiting.pop(request, None)
    if id < 0:
        return
    replica = replicas[id]
    if request in replica.alive and replica.drop(request, now) and replica.due < inf:
        heappush(heap, (replica.due, COMPLETE, id, replica.version))
    view = client.views[id]
    view.answered(deadline_s, now)
    client.policy.answered(view, False, deadline_s, now)


def _drawn(
    machines: Machines, demand: Demand, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """(arrival, client, work) of each request, in order of arrival."""
    draw = generator(seed, "demand")
    slow = int(machines.slow * machines.replicas)
    whole = machines.replicas - slow + slow / machines.slowdown  # replicas, by what their own cores get done
    n = int(draw.poisson(demand.load * whole * machines.cores / mean_work_s(demand) * demand.seconds))
    arrival_s = np.sort(draw.random(n) * demand.seconds)
    work_s = np.maximum(draw.normal(demand.work_s, demand.spread_s, n), 0.0)
    return arrival_s, draw.integers(0, demand.clients, n), work_s


def mean_work_s(demand: Demand) -> float:
    """The mean of a normal distribution of which what is below 0 counts as 0."""
    if not demand.spread_s:
        return demand.work_s
    a = demand.work_s / demand.spread_s
    density, above = exp(-a * a / 2.0) / sqrt(2.0 * pi), (1.0 + erf(a / sqrt(2.0))) / 2.0
    return demand.work_s * above + demand.spread_s * density
