"""The same cloud as a straightforward SimPy model: what `bench/replay.py` measures replays against.

An instance is a process that waits for the next call of its function or for its keep-alive window to pass, whichever
is first. A call that finds no instance waiting starts one, unless one that nobody else waits for is starting, and is
taken by whichever is free first: the new one or one that has answered its call. The instance that fell idle last is the
first to be used. All of this is as in nubes.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Generator
from typing import Any

import simpy

from nubes.workloads.workload import Workload

Process = Generator[simpy.Event, Any, None]


class LastFirst(list[Any]):
    """The line of instances that wait for a call: the last to join is the first to be served."""

    def append(self, item: Any) -> None:
        self.insert(0, item)


class Calls(simpy.Store):
    """The calls of one function that wait for an instance, first come, first served."""

    GetQueue = LastFirst


class Call:
    __slots__ = ("done", "exec_s")

    def __init__(self, env: simpy.Environment, exec_s: float) -> None:
        self.exec_s = exec_s
        self.done = env.event()


class Model:
    """Runs a workload under a fixed keep-alive window of `keep_s` seconds."""

    def __init__(self, workload: Workload, keep_s: float) -> None:
        self.env = simpy.Environment()
        self.workload = workload
        self.keep_s = keep_s
        self.calls = [Calls(self.env) for _ in workload.specs]
        self.samples = [samples.tolist() for samples in workload.start_s]
        self.starts = [0] * len(workload.specs)
        self.starting = [0] * len(workload.specs)
        self.latencies_s = array("d")

    def instance(self, function: int) -> Process:
        env, calls = self.env, self.calls[function]
        samples = self.samples[function]
        start_s = samples[self.starts[function] % len(samples)]
        self.starts[function] += 1
        self.starting[function] += 1
        yield env.timeout(start_s)
        self.starting[function] -= 1
        while True:
            following = calls.get()
            yield following | env.timeout(self.keep_s)
            if not following.triggered:
                following.cancel()
                return
            call = following.value
            yield env.timeout(call.exec_s)
            call.done.succeed()

    def call(self, function: int, exec_s: float) -> Process:
        env, calls = self.env, self.calls[function]
        arrived_s = env.now
        if not calls.get_queue and len(calls.items) >= self.starting[function]:
            env.process(self.instance(function))
        call = Call(env, exec_s)
        yield calls.put(call)
        yield call.done
        self.latencies_s.append(env.now - arrived_s)

    def arrivals(self) -> Process:
        env, workload = self.env, self.workload
        columns = (workload.arrival_s.tolist(), workload.function.tolist(), workload.exec_s.tolist())
        for arrival_s, function, exec_s in zip(*columns, strict=True):
            yield env.timeout(arrival_s - env.now)
            env.process(self.call(function, exec_s))

    def run(self) -> float:
        """Simulates the whole workload; returns the seconds that took."""
        self.env.process(self.arrivals())
        begun = time.perf_counter()
        self.env.run(self.workload.seconds)
        return time.perf_counter() - begun
