"""Servers that start models for requests, in virtual time: how long each request waits until its model is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import nan
from typing import TYPE_CHECKING

import numpy as np

from nubes.llm.cluster.startup import Checkpointed, Inference, Placement, Server, Startup

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nubes.workloads.llm import LLMWorkload


LOOKED_AT = 32  # of those that wait, whenever something changes


@dataclass(frozen=True, eq=False)
class Started:
    """`startup_s`: by request, seconds from its arrival until its model was there.

    `busy`: share of all GPU time that models were on GPUs, loading included, while requests came.
    """

    startup_s: NDArray[np.float64]
    busy: float
    moved: int


def simulate_startup(
    workload: LLMWorkload, models: Sequence[Checkpointed], which: Sequence[int], servers: Sequence[Server],
    policy: Startup,
) -> Started:  # fmt: skip
    """Every request starts its model, runs alone on it, and ends it. `which`: the model of each request.

    Requests that wait are looked at in the order in which they came, whenever something changes.
    """
    run = _Run(workload, models, which, servers, policy)
    run.through()
    total = sum(server.gpus for server in servers) * float(workload.arrival_s[-1])
    return Started(run.startup_s, run.busy_s / total, run.moved)


class _Run:
    def __init__(
        self, workload: LLMWorkload, models: Sequence[Checkpointed], which: Sequence[int], servers: Sequence[Server],
        policy: Startup,
    ) -> None:  # fmt: skip
        self.workload = workload
        self.models = models
        self.which = which
        self.servers = {server.number: server for server in servers}
        self.policy = policy
        self.startup_s = np.full(workload.requests, nan)
        self.waiting: list[int] = []
        self.events: list[tuple[float, int, str, int, int]] = []  # when, order, what, request, server
        self.count = 0
        self.busy_s = 0.0
        self.moved = 0
        for at, when in enumerate(workload.arrival_s.tolist()):
            self._at(when, "arrives", at, 0)

    def _at(self, when: float, what: str, id: int, number: int) -> None:
        self.count += 1
        heappush(self.events, (when, self.count, what, id, number))

    def through(self) -> None:
        while self.events:
            now, _, what, id, number = heappop(self.events)
            if what == "arrives":
                self.waiting.append(id)
            elif what == "ends":
                inference = self.servers[number].running.get(id)
                if inference is None or inference.ends_s != now:
                    continue  # it has moved, or began anew
                del self.servers[number].running[id]
            else:
                inference = self.servers[number].running.get(id)
                if inference is None or inference.begun_s != now:
                    continue
                inference.settled = True
            self._place(now)

    def _place(self, now: float) -> None:
        for id in self.waiting[:LOOKED_AT]:
            model = self.models[self.which[id]]
            placement = self.policy.choose(model, list(self.servers.values()), now)
            if placement is not None:
                self.waiting.remove(id)
                self._start(id, model, placement, now)

    def _start(self, id: int, model: Checkpointed, placement: Placement, now: float) -> None:
        server = self.servers[placement.server]
        freed_s = now
        for victim, target in placement.victims:
            # Its GPUs count as the new one's from now on, who can use them when it has left.
            inference = server.running.pop(victim)
            freed_s = max(freed_s, self._move(inference, self.servers[target], now))
        loaded_s = max(freed_s, now) + server.load(model, now)
        self._runs(server, id, model, loaded_s, now)

    def _runs(self, server: Server, id: int, model: Checkpointed, loaded_s: float, now: float) -> None:
        self.startup_s[id] = loaded_s - self.workload.arrival_s[id]
        prompt, output = int(self.workload.prompt[id]), int(self.workload.output[id])
        ends_s = loaded_s + model.resume_s(prompt) + output * model.token_s
        server.running[id] = Inference(id, model, prompt, loaded_s, ends_s, settled=False)
        self.busy_s += (ends_s - now) * model.gpus
        self._at(loaded_s, "loaded", id, server.number)
        self._at(ends_s, "ends", id, server.number)
        self._forget(server, model)

    def _move(self, inference: Inference, target: Server, now: float) -> float:
        """It runs on at the source until the target has its model and KV; then its GPUs are free. When that is."""
        self.moved += 1
        ready_s = now + target.load(inference.model, now)
        pause_s = inference.model.resume_s(inference.tokens(ready_s))
        moved = Inference(
            inference.id, inference.model, inference.prompt, inference.begun_s, inference.ends_s + pause_s,
        )  # fmt: skip
        target.running[inference.id] = moved
        self.busy_s += (ready_s + pause_s - now) * inference.model.gpus
        self._at(moved.ends_s, "ends", inference.id, target.number)
        self._forget(target, inference.model)
        return ready_s + pause_s

    def _forget(self, server: Server, model: Checkpointed) -> None:
        if not self.policy.keeps:
            server.disk.clear()
            server.memory.clear()
