"""Requests that fan out to leaves, late leaves that get copies, and replicas of leaves that queue or do not."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf, nan
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from nubes.kernel.rng import rng
from nubes.serving.fanout import FanOut
from nubes.serving.models import Leaf, Tree
from nubes.serving.seams import Hedging
from nubes.workloads.draws import generator

ARRIVES, ANSWERS, COPY, REACHES, ENDS, EXPIRES = range(6)
CHUNK = 65_536


@dataclass(frozen=True)
class Fanned:
    """What became of each whole request, and of the leaf requests that they were made of."""

    arrival_s: NDArray[np.float64]
    latency_s: NDArray[np.float64]
    answered: NDArray[np.int32]  # leaves whose answers are in it
    leaf_latency_s: NDArray[np.float64]  # of those that were answered and not given up
    asked: int  # leaf requests
    copies: int  # sent beside them
    doubled: int  # copies that were worked on although another was begun already
    events: int
    wall_s: float


class _Request:
    """One leaf request: its copies, and when whoever still has one of them knows that it is not needed."""

    __slots__ = ("back_s", "begun", "leaf", "places", "root", "sent_s")

    def __init__(self, root: int, leaf: int, now: float) -> None:
        self.root = root
        self.leaf = leaf
        self.sent_s = now
        self.places: list[int] = []  # replicas that have a copy
        self.back_s = inf
        self.begun = 0  # copies that were


def simulate_leaves(tree: Tree, leaf: Leaf, hedging: Hedging, seed: int = 0) -> Fanned:
    """Sends `tree.requests` whole requests and waits for all; all leaf requests go through one `hedging` policy.

    A copy goes to another replica of its leaf, at random. Who gets the first answer calls the others back, and a
    tied copy calls the other back as it begins: this takes as long as any message. The same arguments, the same
    outcome.
    """
    begun_s = perf_counter()
    draw = generator(seed, "tree")
    arrivals = np.cumsum(draw.exponential(1.0 / tree.rate, tree.requests)).tolist()
    service = _service(leaf, draw)
    chance = rng(seed, "replicas").random
    net, replicas, most, tied = tree.network_s, leaf.replicas, hedging.copies, hedging.tied
    fans = [
        FanOut(tree.leaves, tree.canaries, tree.patience_s, tree.enough, tree.deadline_s) for _ in range(tree.requests)
    ]
    open_requests: list[list[_Request]] = [[] for _ in fans]
    latency, leaf_latency = [nan] * tree.requests, []
    queues: list[deque[_Request]] = [deque() for _ in range(tree.leaves * replicas)]
    working = bytearray(len(queues))
    heap: list[tuple[float, int, int, object, int]] = [(at, i, ARRIVES, None, i) for i, at in enumerate(arrivals)]
    sequence, asked, copies, doubled, events = len(heap), 0, 0, 0, 0

    def send(request: _Request, now: float) -> None:
        nonlocal sequence, doubled
        places = request.places
        place = int(chance() * (replicas - len(places)))
        for other in sorted(places):
            place += place >= other
        places.append(place)
        sequence += 1
        if leaf.queues:
            heappush(heap, (now + net, sequence, REACHES, request, request.leaf * replicas + place))
        else:
            doubled += len(places) > 1
            heappush(heap, (now + next(service) + 2.0 * net, sequence, ANSWERS, request, 0))
        if len(places) <= most and (delay := hedging.delay_s(now)) < inf:
            sequence += 1
            heappush(heap, (now + delay, sequence, COPY, request, 0))

    def ask(root: int, leaves: Iterable[int], now: float) -> None:
        nonlocal asked
        for number in leaves:
            asked += 1
            request = _Request(root, number, now)
            open_requests[root].append(request)
            hedging.sent(now)
            send(request, now)

    def work(place: int, now: float) -> None:
        """A replica takes the first in its queue that is still wanted."""
        nonlocal sequence, doubled
        queue = queues[place]
        while queue:
            request = queue.popleft()
            if request.back_s <= now:
                continue
            doubled += request.begun > 0
            request.begun += 1
            if tied:
                request.back_s = min(request.back_s, now + net)
            sequence += 1
            heappush(heap, (now + next(service), sequence, ENDS, request, place))
            working[place] = True
            return
        working[place] = False

    def finish(root: int, now: float) -> None:
        latency[root] = now - arrivals[root]
        for request in open_requests[root]:
            request.back_s = min(request.back_s, now + net)
        open_requests[root] = []

    while heap:
        now, _, kind, request, number = heappop(heap)
        events += 1
        if kind == COPY:
            assert isinstance(request, _Request)
            if fans[request.root].done or (request.back_s < inf and not tied) or request.sent_s < 0.0:
                continue
            again = hedging.spend(now)
            if again <= now:
                copies += 1
                send(request, now)
            elif again < inf:
                sequence += 1
                heappush(heap, (again, sequence, COPY, request, 0))
        elif kind == ANSWERS:
            assert isinstance(request, _Request)
            root = request.root
            fan = fans[root]
            if request.sent_s < 0.0 or fan.done:
                continue
            took = now - request.sent_s
            leaf_latency.append(took)
            hedging.answered(took, now)
            request.sent_s = -1.0  # it is answered
            request.back_s = min(request.back_s, now + net)
            more = fan.answered(True, now)
            if more:
                ask(root, more, now)
            if fan.done:
                finish(root, now)
        elif kind == REACHES:
            assert isinstance(request, _Request)
            queues[number].append(request)
            if not working[number]:
                work(number, now)
        elif kind == ENDS:
            sequence += 1
            heappush(heap, (now + net, sequence, ANSWERS, request, 0))
            work(number, now)
        elif kind == ARRIVES:
            ask(number, fans[number].start(now), now)
            if (at := fans[number].next_s()) < inf:
                sequence += 1
                heappush(heap, (at, sequence, EXPIRES, None, number))
        else:
            fan = fans[number]
            if not fan.done:
                fan.expired(now)
                if fan.done:
                    finish(number, now)
                elif (at := fan.next_s()) < inf:
                    sequence += 1
                    heappush(heap, (at, sequence, EXPIRES, None, number))
    return Fanned(
        np.array(arrivals), np.array(latency), np.array([fan.good for fan in fans], np.int32), np.array(leaf_latency),
        asked, copies, doubled, events, perf_counter() - begun_s,
    )  # fmt: skip


def _service(leaf: Leaf, draw: np.random.Generator) -> Iterator[float]:
    """Seconds of work, without end."""
    while True:
        times = leaf.median_s * np.exp(leaf.sigma * draw.standard_normal(CHUNK))
        if leaf.stalls:
            times += leaf.stall_s * (draw.random(CHUNK) < leaf.stalls)
        yield from times.tolist()
