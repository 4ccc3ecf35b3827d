"""The functions controller: calls come in, instances start, take calls, fall idle and stop. All choices are its policies'."""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappop, heappush
from math import inf
from typing import Any

from nubes.functions import calendar
from nubes.functions import events as e
from nubes.functions.events import CANCELLED, COLD, DELAYED, FAILED, SUCCEEDED, TIMED_OUT, WARM
from nubes.functions.seams import ColdStart, KeepAlive, Queueing
from nubes.functions.spec import FunctionSpec
from nubes.functions.state import Call, Function, Instance, Result
from nubes.functions.tree import Tree
from nubes.kernel.message import Command, Event
from nubes.kernel.policy import make

INNER_CALLS = 1 << 62  # ids of calls that the controller itself makes (schedules) start here
START_FAILURES = 3  # starts in a row that may die before the calls that wait get an error
LOSSES = 2  # instances that may be lost under a durable call before it gets an error
WAITS, RETRIES = 0, -1  # what stands in for a call's instance while it is queued, or waits to be tried again
RESULTS_S, RESULTS_MAX = 86_400.0, 100_000  # how long, and how many, answers of durable calls are kept
SMOOTHING = 0.2  # weight of the newest sample in moving averages


class Functions:
    """Sans-I/O. Feed it the events of `nubes.functions.events`; it returns commands."""

    def __init__(
        self,
        keep_alive: str | KeepAlive | None = None,
        queueing: str | Queueing | None = None,
        cold_start: str | ColdStart | None = None,
        cpu: float = inf,
        memory_bytes: float = inf,
        tree_share: float = 0.25,
    ) -> None:
        self.keep_alives: dict[str, KeepAlive] = {"": make("keep-alive", keep_alive)}
        self.queueing: Queueing = make("queueing", queueing)
        self.cpu = cpu
        self.memory_bytes = memory_bytes
        self.tree_share = tree_share
        self.tree = Tree(make("cold-start", cold_start), memory_bytes * tree_share)
        self.cpu_used = 0.0
        self.memory_used = 0
        self.specs: dict[str, FunctionSpec] = {}
        self.apps: dict[str, tuple[int, tuple[str, ...], bool]] = {}  # name -> version, functions, ephemeral
        self.functions: dict[str, Function] = {}
        self.instances: dict[int, Instance] = {}
        self.calls: dict[int, Call] = {}
        self.results: dict[int, Result] = {}
        self.keys: dict[tuple[str, str], int] = {}
        self._blocked: list[tuple[tuple[float, ...], int, Function]] = []
        self._sequence = 0
        self._instance_ids = 0
        self._inner_calls = 0
        self._ticking = False
        self._out: list[Command] = []
        self._bind()

    def _bind(self) -> None:
        self._handlers: dict[type[Event], Any] = {
            e.Submitted: self._submitted,
            e.Finished: self._finished,
            e.TimerFired: self._timer,
            e.InstanceReady: self._ready,
            e.InstanceLost: self._lost,
            e.NodeReady: self._node_ready,
            e.NodeLost: self._node_lost,
            e.Deployed: self._deployed,
            e.Removed: self._removed,
            e.Cancelled: self._cancelled,
            e.ClientGone: self._client_gone,
            e.PolicySet: self._policy_set,
            e.CapacitySet: self._capacity_set,
            e.Restarted: self._restarted,
        }

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_handlers", "_out")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._out = []
        self._bind()

    def handle(self, event: Any, now: float) -> list[Any]:
        self._out = out = []
        self._handlers[type(event)](event, now)
        return out

    # -- calls ---------------------------------------------------------------------------------------------------

    def _submitted(self, event: e.Submitted, now: float) -> None:
        f = self._pool(event.function, event.variant)
        if f is None:
            self._out.append(e.Resolve(event.call, FAILED, f"No function {event.function!r} is deployed."))
            return
        if event.key and self._known(event, now):
            return
        if f.queued >= f.spec.max_queued:
            reason = f"The queue of {event.function!r} is full ({f.queued} calls wait); nothing was accepted, try again later."
            self._out.append(e.Resolve(event.call, FAILED, "overloaded: " + reason))
            return
        call = Call(event.call, f, now)
        call.method = event.method
        call.owner = event.owner
        if event.keep:
            call.keep = True
            call.input = event.input
        if event.route:
            call.route = event.route
        if event.key:
            call.key = event.key
            self.keys[f.name, event.key] = call.id
        self.calls[call.id] = call
        self._arrived(f, call, now)

    def _known(self, event: e.Submitted, now: float) -> bool:
        """Whether a call of the same idempotency key is under way or answered; this one then gets the same answer.

        A durable call needs no answer of its own: its caller is told the id of the first one.
        """
        first = self.keys.get((event.function + event.variant, event.key), -1)
        call, result = self.calls.get(first), self.results.get(first)
        if event.keep:
            return result is not None or (call is not None and call.keep)
        if call is not None:
            call.also.append(event.call)
        elif result is not None:
            self._out.append(e.Resolve(event.call, result.status, result.reason, result.output))
        return call is not None or result is not None

    def _arrived(self, f: Function, call: Call, now: float) -> None:
        f.keep_alive.arrived(f, now)
        f.arrivals += 1
        f.last_arrival_s = now
        f.prewarm += 1
        if f.open and not f.queued and f.spec.batching is None and not self.queueing.limits and not self._blocked:
            instance = next(reversed(f.open.values()))
            if instance.load or self.cpu_used + f.spec.cpu <= self.cpu:
                self._dispatch(instance, (call,), WARM, now)
                return
        self._enqueue(f, call)
        self._serve(f, now)

    def _enqueue(self, f: Function, call: Call, front: bool = False) -> None:
        call.instance = WAITS
        f.queued += 1
        if self.queueing.ordered:
            self._sequence += 1
            assert isinstance(f.waiting, list)
            heappush(f.waiting, (self.queueing.order(f, call), self._sequence, call))
        elif front:
            assert isinstance(f.waiting, deque)
            f.waiting.appendleft(call)
        else:
            f.waiting.append(call)  # type: ignore[arg-type]

    def _head(self, f: Function) -> Call:
        head = f.waiting[0]
        return head[2] if isinstance(head, tuple) else head

    def _take(self, f: Function) -> Call:
        f.queued -= 1
        if isinstance(f.waiting, deque):
            return f.waiting.popleft()
        return heappop(f.waiting)[2]

    def _serve(self, f: Function, now: float) -> None:
        """Gives waiting calls the instances that are open, then asks the policy how many more to start."""
        spec, queueing = f.spec, self.queueing
        while f.queued and f.open:
            head = self._head(f)
            instance = next(reversed(f.open.values()))
            if not instance.load and self.cpu_used + spec.cpu > self.cpu:
                self._block(f, head)
                return
            if queueing.limits and not self._admitted(f, now):
                return
            if spec.batching is None:
                calls: tuple[Call, ...] = (self._take(f),)
            else:
                size = spec.batching.max_batch_size
                ripe = head.arrived_s + spec.batching.wait_s
                if f.queued < size and now < ripe:
                    self._hold(f, ripe)
                    return
                taken = [self._take(f)]
                while f.queued and len(taken) < size:
                    taken.append(self._take(f))
                calls = tuple(taken)
            how = WARM if calls[0].arrived_s == now else COLD if calls[0].cold and not instance.uses else DELAYED
            self._dispatch(instance, calls, how, now)
        if not f.queued:
            return
        if queueing.limits and not self._admitted(f, now):
            return
        count = f.keep_alive.start(f, now)
        if count <= 0 and not f.instances:
            count = 1
        if count > 0 and self._start(f, count, now) == 0 and not f.starting:
            self._block(f, self._head(f))

    def _admitted(self, f: Function, now: float) -> bool:
        at = self.queueing.admit(f, now)
        if at > now and at != inf:
            self._hold(f, at)
        return at <= now

    def _hold(self, f: Function, at: float) -> None:
        if at < f.held_s:
            f.held_s = at
            self._out.append(e.SetTimer(at, ("serve", f.name)))

    def _block(self, f: Function, head: Call) -> None:
        """`f` waits until CPU or memory comes free."""
        if not f.blocked:
            f.blocked = True
            self._sequence += 1
            heappush(self._blocked, (self.queueing.order(f, head), self._sequence, f))

    def _released(self, now: float) -> None:
        """Something came free: the waiting functions in the queueing policy's order, until one does not fit."""
        while self._blocked:
            f = heappop(self._blocked)[2]
            f.blocked = False
            if f.queued and self.functions.get(f.name) is f:
                self._serve(f, now)
                if f.blocked:
                    return

    def _dispatch(self, instance: Instance, calls: tuple[Call, ...], how: int, now: float) -> None:
        f = instance.function
        if not instance.load:
            f.idle -= 1
            f.busy += 1
            self.cpu_used += f.spec.cpu
        first = calls[0]
        for call in calls:
            call.instance = instance.id
            call.started_s = now
            instance.calls[call.id] = now
        instance.load += len(calls)
        if instance.load >= f.spec.concurrency or len(calls) > 1 or f.spec.batching is not None:
            del f.open[instance.id]
        instance.uses += len(calls)
        instance.last_used_s = now
        deadline = now + f.spec.timeout_s
        instance.expire_s = inf
        if deadline < instance.wake_s:
            self._wake(instance, deadline)
        f.keep_alive.dispatched(instance, how, now - first.arrived_s, now)
        if self.queueing.limits:
            self.queueing.issued(f, now)
        hop = first.asked != f.name
        if len(calls) == 1:
            inputs = (first.input,) if first.keep else ()
            self._out.append(e.Dispatch(instance.id, (first.id,), how, first.method, hop, inputs))
        else:
            batch = tuple(call.id for call in calls)
            inputs = tuple(call.input for call in calls) if any(call.keep for call in calls) else ()
            self._out.append(e.Dispatch(instance.id, batch, how, first.method, False, inputs))
        if f.spec.buffer_instances:
            self._ensure(f, now)

    def _finished(self, event: e.Finished, now: float) -> None:
        instance = self.instances.get(event.instance)
        if instance is None or instance.calls.pop(event.call, None) is None:
            return  # its instance was given up before the answer came
        f = instance.function
        instance.load -= 1
        f.last_end_s = now
        f.exec_s += (event.exec_s - f.exec_s) * (SMOOTHING if f.exec_s else 1.0)
        if self.queueing.limits:
            self.queueing.finished(f, event.ok, event.exec_s, event.backpressure, now)
        call = self.calls.get(event.call)
        if call is not None and not call.finished:
            self._answered(call, event, now)
        self._freed(instance, now)

    def _answered(self, call: Call, event: e.Finished, now: float) -> None:
        f = call.function
        if event.ok and call.route:
            following = self._pool(call.route[0], "")
            if following is None:
                self._resolve(call, FAILED, f"No function {call.route[0]!r} is deployed.", b"", now)
                return
            call.route = call.route[1:]
            call.function = following
            call.method = ""
            call.input = event.output
            call.attempt = 1
            call.arrived_s = now
            self._arrived(following, call, now)
        elif event.ok:
            self._resolve(call, SUCCEEDED, "", event.output, now)
        elif call.attempt <= f.spec.retries.max_retries:
            self._retry(call, now)
        else:
            self._resolve(call, FAILED, "", event.output, now)

    def _retry(self, call: Call, now: float) -> None:
        call.instance = RETRIES
        delay = call.function.spec.retries.delay_s(call.attempt)
        call.attempt += 1
        self._out.append(e.SetTimer(now + delay, ("retry", call.id)))

    def _resolve(self, call: Call, status: str, reason: str, output: bytes, now: float) -> None:
        call.finished = True
        del self.calls[call.id]
        for id in (call.id, *call.also):
            self._out.append(e.Resolve(id, status, reason, output))
            if call.keep:
                self.results[id] = Result(now, call.asked, status, reason, output)
        if call.keep:
            self._forget(now)
        elif call.key:
            del self.keys[call.function.name, call.key]

    def _forget(self, now: float) -> None:
        """Drops answers that are too old or too many; they stand in order of time."""
        while self.results:
            oldest = next(iter(self.results))
            if len(self.results) <= RESULTS_MAX and self.results[oldest].at > now - RESULTS_S:
                return
            del self.results[oldest]
            if len(self.keys) > 2 * len(self.results) + len(self.calls):
                self.keys = {k: c for k, c in self.keys.items() if c in self.results or c in self.calls}

    def _cancelled(self, event: e.Cancelled, now: float) -> None:
        call = self.calls.get(event.call)
        if call is None:
            return
        self._withdraw(call, event.terminate, now)
        self._released(now)

    def _withdraw(self, call: Call, terminate: bool, now: float) -> None:
        instance = self.instances.get(call.instance)
        if call.instance == WAITS:
            self._unqueue(call.function, {call.id})
        self._resolve(call, CANCELLED, "The call was cancelled.", b"", now)
        if instance is None:
            return
        if instance.load == 1 or terminate:
            self._stop(instance, "its call was cancelled", now, kill=True)
        else:
            self._out.append(e.Interrupt(instance.id, call.id))

    def _unqueue(self, f: Function, gone: set[int]) -> None:
        """Takes calls out of the queue of `f`."""
        if isinstance(f.waiting, deque):
            f.waiting = deque(call for call in f.waiting if call.id not in gone)
        else:
            f.waiting = [entry for entry in f.waiting if entry[2].id not in gone]
            heapify(f.waiting)
        f.queued = len(f.waiting)

    def _client_gone(self, event: e.ClientGone, now: float) -> None:
        gone = {c.id: c for c in self.calls.values() if c.owner == event.owner and not c.keep}
        for f in {c.function.name: c.function for c in gone.values()}.values():
            self._unqueue(f, set(gone))
        for call in gone.values():
            call.instance = call.instance or RETRIES
            self._withdraw(call, False, now)
        for app in event.apps:
            self._remove(app, now)
        self._released(now)

    # -- instances -----------------------------------------------------------------------------------------------

    def _start(self, f: Function, count: int, now: float) -> int:
        """Starts up to `count` instances, as far as limits, CPU and memory allow; returns how many."""
        spec = f.spec
        started = 0
        while started < count:
            if spec.max_instances and len(f.instances) >= spec.max_instances:
                break
            if self.cpu_used + spec.cpu > self.cpu or not self._make_room(f, now):
                break
            self._instance_ids += 1
            instance = Instance(self._instance_ids, f, now)
            self.instances[instance.id] = f.instances[instance.id] = instance
            f.starting += 1
            self.cpu_used += spec.cpu
            self.memory_used += spec.memory_bytes
            self._wake(instance, now + spec.startup_timeout_s)
            self.tree.start(instance, now, self._out)
            started += 1
        if started and f.queued:
            for entry in f.waiting:
                (entry[2] if isinstance(entry, tuple) else entry).cold = True
        return started

    def _make_room(self, f: Function, now: float) -> bool:
        """Evicts idle instances, the least worth first, until one of `f` fits. False if it cannot."""
        need = self.memory_used + f.spec.memory_bytes - self.memory_bytes
        if need <= 0:
            return True
        policy = self.keep_alives[""]
        # Of one function's idle instances the longest unused goes first: those are the candidates.
        while need > 0:
            oldest = [next(iter(g.open.values())) for g in self.functions.values() if g.idle and g.open]
            idle = [i for i in oldest if not i.load and len(i.function.instances) > i.function.spec.min_instances]
            if not idle:
                return False
            priority, _, victim = min((policy.priority(i, now), i.id, i) for i in idle)
            policy.evicted(victim, priority)
            need -= victim.function.spec.memory_bytes
            self._stop(victim, "memory was needed", now)
        return True

    def _ready(self, event: e.InstanceReady, now: float) -> None:
        instance = self.instances.get(event.instance)
        if instance is None or instance.ready or instance.stopping:
            return
        f = instance.function
        instance.ready = True
        instance.ready_s = instance.last_used_s = now
        took = now - instance.started_s
        f.cold_start_s += (took - f.cold_start_s) * (SMOOTHING if f.cold_start_s else 1.0)
        f.starting -= 1
        f.failures = 0
        f.idle += 1
        self.cpu_used -= f.spec.cpu
        f.open[instance.id] = instance
        self._freed(instance, now)

    def _freed(self, instance: Instance, now: float) -> None:
        """An instance has room: the next call, or its keep-alive window."""
        f = instance.function
        if not instance.load and instance.uses:
            if f.spec.single_use or instance.version != f.version:
                f.busy -= 1
                f.idle += 1
                self.cpu_used -= f.spec.cpu
                self._stop(instance, "it was for one call" if f.spec.single_use else "a newer version is deployed", now)
                self._after_stop(f, now)
                return
        if instance.id not in f.open and (f.spec.batching is None or not instance.load):
            f.open[instance.id] = instance
        if not instance.load and instance.uses:
            f.busy -= 1
            f.idle += 1
            self.cpu_used -= f.spec.cpu
        if f.queued:
            if self._blocked:
                self._block(f, self._head(f))
            else:
                self._serve(f, now)
        if self._blocked:
            self._released(now)
        if not instance.load and not instance.stopping:
            self._idle(instance, now)

    def _idle(self, instance: Instance, now: float) -> None:
        f = instance.function
        window = f.keep_alive.window(f, now)
        if window.prewarm_s > 0.0 and instance.uses:
            if len(f.instances) > f.spec.min_instances:
                self._out.append(e.SetTimer(now + window.prewarm_s, (f"prewarm/{f.prewarm}", f.name)))
                self._stop(instance, "its function is not expected soon", now)
            return
        instance.expire_s = now + window.keep_s
        if instance.expire_s < instance.wake_s:
            self._wake(instance, instance.expire_s)

    def _wake(self, instance: Instance, at: float) -> None:
        instance.wake_s = at
        self._out.append(e.SetTimer(at, ("instance", instance.id)))

    def _instance_timer(self, instance: Instance, now: float) -> None:
        """One timer serves start-up, call timeouts and keep-alive: it is set to the earliest, and set anew when early."""
        if now < instance.wake_s:
            return
        instance.wake_s = inf
        f = instance.function
        if not instance.ready:
            self._lost(e.InstanceLost(instance.id, f"it was not ready within {f.spec.startup_timeout_s:g} s"), now, kill=True)
            return
        if instance.calls:
            deadline = min(instance.calls.values()) + f.spec.timeout_s
            if now >= deadline:
                self._timed_out(instance, now)
            else:
                self._wake(instance, deadline)
        elif now >= instance.expire_s:
            if len(f.instances) > f.spec.min_instances:
                self._stop(instance, "its keep-alive ran out", now)
                self._after_stop(f, now)
            else:
                instance.expire_s = inf
        elif instance.expire_s < inf:
            self._wake(instance, instance.expire_s)

    def _timed_out(self, instance: Instance, now: float) -> None:
        f = instance.function
        for id, started in list(instance.calls.items()):
            if now >= started + f.spec.timeout_s:
                del instance.calls[id]
                call = self.calls.get(id)
                if call is None or call.finished:
                    continue
                if call.attempt <= f.spec.retries.max_retries:
                    self._retry(call, now)
                else:
                    self._resolve(call, TIMED_OUT, f"The call ran longer than its timeout of {f.spec.timeout_s:g} s.", b"", now)
        self._stop(instance, "a call ran longer than its timeout", now, kill=True)
        self._after_stop(f, now)

    def _stop(self, instance: Instance, reason: str, now: float, kill: bool = False) -> None:
        """Takes an instance out of the state and has its process ended; calls it still runs go back to the queue."""
        if instance.stopping:
            return
        self._drop(instance)
        self._out.append(e.StopInstance(instance.id, reason, kill))
        self._requeue(instance, reason, now, counts=False)

    def _drop(self, instance: Instance) -> None:
        f = instance.function
        instance.stopping = True
        del self.instances[instance.id]
        del f.instances[instance.id]
        f.open.pop(instance.id, None)
        self.memory_used -= f.spec.memory_bytes
        if not instance.ready:
            f.starting -= 1
            self.cpu_used -= f.spec.cpu
        elif instance.load:
            f.busy -= 1
            self.cpu_used -= f.spec.cpu
        else:
            f.idle -= 1

    def _requeue(self, instance: Instance, reason: str, now: float, counts: bool = True) -> None:
        """What becomes of the calls of an instance that is gone."""
        calls = [self.calls[id] for id in instance.calls if id in self.calls]
        instance.calls.clear()
        for call in reversed(calls):
            call.losses += counts
            allowed = max(LOSSES, call.function.spec.retries.max_retries) if call.keep else call.function.spec.retries.max_retries
            if call.losses > allowed:
                self._resolve(call, FAILED, f"The instance that ran the call was lost: {reason}.", b"", now)
            else:
                call.attempt += counts
                self._enqueue(call.function, call, front=True)

    def _after_stop(self, f: Function, now: float) -> None:
        if f.queued:
            self._serve(f, now)
        self._ensure(f, now)
        self._released(now)

    def _lost(self, event: e.InstanceLost, now: float, kill: bool = False) -> None:
        instance = self.instances.get(event.instance)
        if instance is None:
            return
        f = instance.function
        self._drop(instance)
        if kill:
            self._out.append(e.StopInstance(instance.id, event.reason, True))
        if not instance.ready:
            f.failures += 1
            if event.error or f.failures >= START_FAILURES:
                self._fail_waiting(f, event, now)
                self._released(now)
                return
        self._requeue(instance, event.reason, now)
        self._after_stop(f, now)

    def _fail_waiting(self, f: Function, event: e.InstanceLost, now: float) -> None:
        """Instances of `f` do not start: the calls that wait for one get to know why."""
        while f.queued:
            call = self._take(f)
            reason = "" if event.error else f"No instance of {f.name!r} would start: {event.reason}."
            self._resolve(call, FAILED, reason, event.error, now)

    def _ensure(self, f: Function, now: float) -> None:
        """Keeps the instances that the function asked to have ahead of its calls."""
        want = f.spec.min_instances
        if f.busy and f.spec.buffer_instances:
            want = max(want, f.busy + f.spec.buffer_instances)
        missing = want - len(f.instances)
        if missing > 0 and f.failures < START_FAILURES:
            self._start(f, missing, now)

    # -- timers --------------------------------------------------------------------------------------------------

    def _timer(self, event: e.TimerFired, now: float) -> None:
        kind, id = event.key
        if kind == "instance":
            instance = self.instances.get(id)  # type: ignore[arg-type]
            if instance is not None:
                self._instance_timer(instance, now)
        elif kind == "serve":
            f = self.functions.get(id)  # type: ignore[arg-type]
            if f is not None:
                f.held_s = inf
                if f.queued:
                    self._serve(f, now)
        elif kind == "retry":
            call = self.calls.get(id)  # type: ignore[arg-type]
            if call is not None and call.instance == RETRIES:
                self._enqueue(call.function, call)
                self._serve(call.function, now)
        elif kind == "tick":
            self._tick(now)
        elif kind.startswith("prewarm/"):
            f = self.functions.get(id)  # type: ignore[arg-type]
            if f is not None and f.prewarm == int(kind[8:]) and not f.instances:
                self._start(f, 1, now)
        elif kind.startswith("schedule/"):
            self._scheduled(str(id), int(kind[9:]), now)

    def _tick(self, now: float) -> None:
        policy = self.queueing
        if policy.tick_s <= 0.0:
            self._ticking = False
            return
        self._ticking = True
        policy.tick(self.cpu_used / self.cpu if self.cpu else 1.0, now)
        self._out.append(e.SetTimer(now + policy.tick_s, ("tick", 0)))
        for f in list(self.functions.values()):
            if f.queued and not f.blocked:
                self._serve(f, now)

    def _scheduled(self, name: str, version: int, now: float) -> None:
        spec = self.specs.get(name)
        if spec is None or spec.schedule is None or self.apps[name.partition("/")[0]][0] != version:
            return
        self._out.append(e.SetTimer(calendar.next_time(spec.schedule, now), (f"schedule/{version}", name)))
        self._inner_calls += 1
        self._submitted(e.Submitted(INNER_CALLS + self._inner_calls, name, keep=True), now)

    # -- deployments ---------------------------------------------------------------------------------------------

    def _pool(self, name: str, variant: str) -> Function | None:
        f = self.functions.get(name + variant)
        if f is None:
            spec = self.specs.get(name)
            if spec is None:
                return None
            version = self.apps[name.partition("/")[0]][0]
            f = Function(name + variant, spec, variant, version, self._keep_alive(spec.keep_alive))
            f.waiting = [] if self.queueing.ordered else deque()
            self.functions[f.name] = f
        return f

    def _keep_alive(self, text: str) -> KeepAlive:
        if text not in self.keep_alives:
            self.keep_alives[text] = make("keep-alive", text)
        return self.keep_alives[text]

    def _deployed(self, event: e.Deployed, now: float) -> None:
        names = tuple(spec.name for spec in event.functions)
        _, before, _ = self.apps.get(event.app, (0, (), False))
        self.apps[event.app] = (event.version, names, event.ephemeral)
        self._remove_functions([name for name in before if name not in names], now)
        for spec in event.functions:
            self.specs[spec.name] = spec
            for f in [g for g in self.functions.values() if g.spec.name == spec.name]:
                self._replace(f, spec, event.version, now)
            self.tree.failures.pop(spec.name, None)
            if spec.kind == "function" or spec.min_instances:
                f = self._pool(spec.name, "") or f
                self.tree.prepare(f, now, self._out)
                self._ensure(f, now)
            if spec.schedule is not None:
                self._out.append(e.SetTimer(calendar.next_time(spec.schedule, now), (f"schedule/{event.version}", spec.name)))
        if self.queueing.tick_s and not self._ticking:
            self._ticking = True
            self._out.append(e.SetTimer(now + self.queueing.tick_s, ("tick", 0)))

    def _replace(self, f: Function, spec: FunctionSpec, version: int, now: float) -> None:
        """A new version: idle instances go at once, busy ones after their calls, waiting calls get new instances."""
        for instance in [i for i in f.instances.values() if not i.load]:
            self._stop(instance, "a newer version is deployed", now)
        old = f.spec
        for instance in f.instances.values():  # what they hold is accounted at the new size from here on
            self.memory_used += spec.memory_bytes - old.memory_bytes
            self.cpu_used += spec.cpu - old.cpu
            f.open.pop(instance.id, None)
        f.spec, f.version, f.failures = spec, version, 0
        f.keep_alive = self._keep_alive(spec.keep_alive)
        self.tree.drop(f.name, now, self._out)
        if f.queued:
            self._serve(f, now)

    def _removed(self, event: e.Removed, now: float) -> None:
        self._remove(event.app, now)
        self._released(now)

    def _remove(self, app: str, now: float) -> None:
        if app in self.apps:
            _, names, _ = self.apps.pop(app)
            self._remove_functions(list(names), now)

    def _remove_functions(self, names: list[str], now: float) -> None:
        for name in names:
            self.specs.pop(name, None)
            for f in [g for g in self.functions.values() if g.spec.name == name]:
                del self.functions[f.name]
                for call in [c for c in self.calls.values() if c.function is f]:
                    self._resolve(call, CANCELLED, f"{name!r} was stopped.", b"", now)
                for instance in list(f.instances.values()):
                    self._stop(instance, "its app was stopped", now)
                self.tree.drop(f.name, now, self._out)

    # -- the machine ---------------------------------------------------------------------------------------------

    def _node_ready(self, event: e.NodeReady, now: float) -> None:
        self.tree.ready(event, now, self._out)

    def _node_lost(self, event: e.NodeLost, now: float) -> None:
        self.tree.lost(event.node, now, self._out)

    def _policy_set(self, event: e.PolicySet, now: float) -> None:
        if event.seam == "keep-alive" and event.function:
            for f in self.functions.values():
                if f.spec.name == event.function:
                    f.keep_alive = self._keep_alive(event.policy)
        elif event.seam == "keep-alive":
            before, self.keep_alives[""] = self.keep_alives[""], make("keep-alive", event.policy)
            for f in self.functions.values():
                if f.keep_alive is before:
                    f.keep_alive = self.keep_alives[""]
        elif event.seam == "queueing":
            self.queueing = make("queueing", event.policy)
            self._blocked.clear()
            for f in self.functions.values():
                f.blocked = False
                calls = [entry[2] if isinstance(entry, tuple) else entry for entry in f.waiting]
                f.waiting = [] if self.queueing.ordered else deque()
                f.queued = 0
                for call in sorted(calls, key=lambda c: c.arrived_s):
                    self._enqueue(f, call)
                if f.queued:
                    self._serve(f, now)
            if not self._ticking:
                self._tick(now)
        elif event.seam == "cold-start":
            self.tree.policy = make("cold-start", event.policy)

    def _capacity_set(self, event: e.CapacitySet, now: float) -> None:
        self.cpu, self.memory_bytes = event.cpu, event.memory_bytes
        self.tree.budget_bytes = event.memory_bytes * self.tree_share
        self._released(now)

    def _restarted(self, event: e.Restarted, now: float) -> None:
        self.tree.clear()
        self._blocked.clear()
        self.instances.clear()
        self.cpu_used, self.memory_used, self._ticking = 0.0, 0, False
        for app in [name for name, (_, _, ephemeral) in self.apps.items() if ephemeral]:
            self._remove(app, now)
        for f in self.functions.values():
            f.instances.clear()
            f.open.clear()
            f.waiting.clear()
            f.busy = f.idle = f.starting = f.queued = f.failures = 0
            f.blocked, f.held_s = False, inf
        for call in list(self.calls.values()):
            if call.keep:
                self._enqueue(call.function, call)
            else:
                del self.calls[call.id]
        for app, (version, names, _) in self.apps.items():
            specs = tuple(self.specs[name] for name in names)
            self._deployed(e.Deployed(app, version, specs), now)
        for f in list(self.functions.values()):
            if f.queued:
                self._serve(f, now)
