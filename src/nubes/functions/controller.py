"""The functions controller: calls come in, instances start, take calls, fall idle and stop. All choices are its policies'."""

from __future__ import annotations

from collections import OrderedDict, deque
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
from nubes.kernel.policy import Policy, make
from nubes.kernel.units import show_bytes

INNER_CALLS = 1 << 62  # ids of calls that the controller itself makes (schedules) start here
MOST_AHEAD = 16  # calls that an instance may be handed at once, to run one after the other
PATIENCE_S = 60.0  # how long a function waits for memory before warm instances of busier ones give way
START_FAILURES = 3  # starts in a row that may die before the calls that wait get an error
LOSSES = 2  # instances that may be lost under a durable call before it gets an error
WAITS, RETRIES = 0, -1  # what stands in for a call's instance while it is queued, or waits to be tried again
RESULTS_S, RESULTS_MAX = 86_400.0, 100_000  # how long, and how many, answers of durable calls are kept
BUFFER_S = 60.0  # how often to look whether an instance that was to be there ahead of calls still is
SHORT = (inf, inf, inf)  # the place of a function that waits for such instances: behind all calls
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
        self.keep_alives: dict[str, KeepAlive] = {"": self._make("keep-alive", keep_alive)}
        self.queueing: Queueing = self._make("queueing", queueing)
        self.cpu = cpu
        self.memory_bytes = memory_bytes
        self.tree_share = tree_share
        self.tree = Tree(self._make("cold-start", cold_start), memory_bytes * tree_share)
        self.cpu_used = 0.0
        self.memory_used = 0
        self.specs: dict[str, FunctionSpec] = {}
        self.apps: dict[str, tuple[int, tuple[str, ...], bool]] = {}  # name -> version, functions, ephemeral
        self.functions: dict[str, Function] = {}
        self.instances: dict[int, Instance] = {}
        self.calls: dict[int, Call] = {}
        self.results: OrderedDict[int, Result] = OrderedDict()  # a plain dict is slow to lose its first item
        self.keys: dict[tuple[str, str], int] = {}  # (function, idempotency key) -> its newest call
        self.aliases: dict[int, int] = {}  # call that waits for another's answer -> that one
        self.chosen: dict[str, str] = {}  # function -> the keep-alive policy it was switched to
        self.due: dict[str, float] = {}  # function -> when its schedule comes round
        self._blocked: list[tuple[tuple[float, ...], int, Function]] = []
        self._sequence = 0
        self._instance_ids = 0
        self._inner_calls = 0
        self._ticks = 0  # counts the chains of ticks, so that an outdated one is known
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

    def _make(self, seam: str, policy: str | Policy | None) -> Any:
        """Every policy comes from here, so that a controller that is looked into can wrap them."""
        return make(seam, policy)

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
        f = self.functions.get(event.function + event.variant) or self._pool(event.function, event.variant)
        if f is None:
            self._out.append(e.Resolve(event.call, FAILED, f"No function {event.function!r} is deployed."))
            return
        if event.key and self._known(event, now):
            return
        if f.queued >= f.spec.max_queued:
            reason = f"The queue of {event.function!r} is full ({f.queued} calls wait); nothing was accepted, try again later."
            self._out.append(e.Resolve(event.call, FAILED, "overloaded: " + reason))
            return
        call = Call(event, f, now)
        if event.key:
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
            call.also += (event.call,)
            self.aliases[event.call] = call.id
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
            if instance.load or self.cpu_used + f.cpu <= self.cpu:
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
            if not instance.load and self.cpu_used + f.cpu > self.cpu:
                self._block(f, now)
                return
            if queueing.limits and not self._admitted(f, now):
                return
            if spec.batching is None:
                calls: tuple[Call, ...] = self._batch(f, self._ahead(f)) if f.queued > 1 else (self._take(f),)
            else:
                size = spec.batching.max_batch_size
                ripe = head.arrived_s + spec.batching.wait_s
                if f.queued < size and now < ripe:
                    self._hold(f, ripe)
                    return
                calls = self._batch(f, size)
            how = (
                WARM
                if calls[0].arrived_s == now
                else DELAYED
                if instance.uses or calls[0].arrived_s > f.last_start_s
                else COLD
            )
            self._dispatch(instance, calls, how, now)
        if not f.queued:
            return
        if queueing.limits and not self._admitted(f, now):
            return
        count = f.keep_alive.start(f, now)
        if queueing.limits:  # calls that are held need no instance yet
            count = min(count, queueing.allowance(f, now))
        if count <= 0 and not f.instances:
            count = 1
        if count <= 0 or (spec.max_instances and len(f.instances) >= spec.max_instances):
            return
        if not self._start(f, count, now) and not f.starting:
            self._block(f, now)

    def _batch(self, f: Function, size: int) -> tuple[Call, ...]:
        """Up to `size` waiting calls that can run as one: of one method, and with inputs of one kind."""
        first = self._take(f)
        taken = [first]
        while f.queued and len(taken) < size:
            head = self._head(f)
            if head.method != first.method or head.hop != first.hop:
                break
            taken.append(self._take(f))
        return tuple(taken)

    def _ahead(self, f: Function) -> int:
        """How many waiting calls an instance gets at once, to run one after the other: more than one if they are tiny."""
        if f.room > 1 or f.spec.single_use or self.queueing.limits or not f.exec_s:
            return 1
        share = f.queued // (f.busy + f.idle)
        return max(1, min(share, MOST_AHEAD, int(self.queueing.ahead_s / f.exec_s)))

    def _admitted(self, f: Function, now: float) -> bool:
        at = self.queueing.admit(f, now)
        if at > now and at != inf:
            self._hold(f, at)
        return at <= now

    def _hold(self, f: Function, at: float) -> None:
        if at < f.held_s:
            f.held_s = at
            self._out.append(e.SetTimer(at, ("serve", f.name)))

    def _block(self, f: Function, now: float) -> None:
        """The calls of `f` wait until CPU or memory comes free; if there will never be enough, they get to know."""
        if not self._fits(f):
            reason = (
                f"{f.spec.name!r} needs {f.spec.cpu:g} CPU and {show_bytes(f.spec.memory_bytes)} of memory, "
                f"but all there is are {self.cpu:g} CPU and {show_bytes(self.memory_bytes)}."
            )
            self._fail_waiting(f, reason, b"", now)
        elif not f.blocked:
            f.blocked = True
            self._sequence += 1
            heappush(self._blocked, (self.queueing.order(f, self._head(f)), self._sequence, f))

    def _fits(self, f: Function) -> bool:
        """Whether one instance of `f` would fit if it were alone."""
        return f.cpu <= self.cpu and f.spec.memory_bytes <= self.memory_bytes

    def _released(self, now: float) -> None:
        """Something came free: the waiting functions in the queueing policy's order, until one does not fit."""
        while self._blocked:
            order, _, f = heappop(self._blocked)
            if order == SHORT:
                f.short = False
            else:
                f.blocked = False
            if self.functions.get(f.name) is not f:
                continue
            if order == SHORT:
                self._ensure(f, now)
            elif f.queued:
                self._serve(f, now)
            if f.short if order == SHORT else f.blocked:
                return

    def _dispatch(self, instance: Instance, calls: tuple[Call, ...], how: int, now: float) -> None:
        f, id = instance.function, instance.id
        spec, count = f.spec, len(calls)
        if not instance.load:
            f.idle -= 1
            f.busy += 1
            self.cpu_used += f.cpu
        first = calls[0]
        for call in calls:
            call.instance = id
            call.started_s = now
            instance.calls[call.id] = now
        instance.load += count
        if instance.load >= f.room:
            del f.open[id]
        instance.uses += count
        instance.last_used_s = now
        deadline = now + spec.timeout_s
        instance.expire_s = inf
        if deadline < instance.wake_s:
            self._wake(instance, deadline)
        f.keep_alive.dispatched(instance, how, now - first.arrived_s, now)
        if self.queueing.limits:
            for _ in calls:
                self.queueing.issued(f, now)
        hop = first.hop
        if count == 1:
            inputs = (first.input,) if first.keep else ()
            self._out.append(e.Dispatch(id, (first.id,), how, first.method, hop, inputs, spec.batching is not None))
        else:
            batch = tuple(call.id for call in calls)
            inputs = tuple(call.input for call in calls) if any(call.keep for call in calls) else ()
            self._out.append(e.Dispatch(id, batch, how, first.method, hop, inputs, spec.batching is not None))
        if spec.buffer_instances:
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
        if call is None:
            self._freed(instance, now)
        elif event.ok and call.route:
            self._freed(instance, now)
            self._forward(call, event.output, now)
        else:
            if event.ok:
                self._resolve(call, SUCCEEDED, "", event.output, now)
            elif call.attempt <= f.spec.retries.max_retries:
                self._retry(call, now)
            else:
                self._resolve(call, FAILED, "", event.output, now)
            self._freed(instance, now)

    def _forward(self, call: Call, output: bytes, now: float) -> None:
        """One step of a call's route is done: its output is the input of the next."""
        following = self._pool(call.route[0], "")
        if following is None:
            self._resolve(call, FAILED, f"No function {call.route[0]!r} is deployed.", b"", now)
            return
        call.route = call.route[1:]
        call.hop = True
        call.function = following
        call.method = ""
        call.input = output
        call.attempt = 1
        call.arrived_s = now
        self._arrived(following, call, now)

    def _retry(self, call: Call, now: float) -> None:
        call.instance = RETRIES
        delay = call.function.spec.retries.delay_s(call.attempt)
        call.attempt += 1
        self._out.append(e.SetTimer(now + delay, ("retry", call.id)))

    def _resolve(self, call: Call, status: str, reason: str, output: bytes, now: float) -> None:
        del self.calls[call.id]
        self._out.append(e.Resolve(call.id, status, reason, output))
        for id in call.also:
            del self.aliases[id]
            self._out.append(e.Resolve(id, status, reason, output))
        if call.keep:
            for id in (call.id, *call.also):
                self.results[id] = Result(now, call.asked, status, reason, output)
            self._forget(now)
        elif call.key and self.keys.get((call.asked, call.key)) == call.id:
            del self.keys[call.asked, call.key]

    def _forget(self, now: float) -> None:
        """Drops answers that are too old or too many; they stand in order of time."""
        while self.results:
            oldest = next(iter(self.results.values()))
            if len(self.results) <= RESULTS_MAX and oldest.at > now - RESULTS_S:
                return
            self.results.popitem(last=False)
            if len(self.keys) > 2 * len(self.results) + len(self.calls):
                self.keys = {k: c for k, c in self.keys.items() if c in self.results or c in self.calls}

    def _cancelled(self, event: e.Cancelled, now: float) -> None:
        first = self.aliases.pop(event.call, None)
        if first is not None:  # the work goes on for those who still wait for it
            self.calls[first].also = tuple(id for id in self.calls[first].also if id != event.call)
            self._out.append(e.Resolve(event.call, CANCELLED, "The call was cancelled."))
        elif event.call in self.calls:
            self._withdraw([self.calls[event.call]], event.terminate, now)

    def _withdraw(self, calls: list[Call], terminate: bool, now: float) -> None:
        """Ends calls that nobody wants any more, wherever they are."""
        functions = {call.function.name: call.function for call in calls}
        waiting = {call.id for call in calls if call.instance == WAITS}
        for f in functions.values():
            self._unqueue(f, waiting)
        for call in calls:
            self._resolve(call, CANCELLED, "The call was cancelled.", b"", now)
        for call in calls:
            instance = self.instances.get(call.instance)
            if instance is None:
                continue
            if instance.load == 1 or terminate or call.function.room == 1:
                self._stop(instance, "its call was cancelled", now, kill=True)
            else:
                self._out.append(e.Interrupt(instance.id, call.id))
        for f in functions.values():
            self._after_stop(f, now)

    def _unqueue(self, f: Function, gone: set[int]) -> None:
        """Takes calls out of the queue of `f`."""
        if not gone or not f.queued:
            return
        if isinstance(f.waiting, deque):
            f.waiting = deque(call for call in f.waiting if call.id not in gone)
        else:
            f.waiting = [entry for entry in f.waiting if entry[2].id not in gone]
            heapify(f.waiting)
        f.queued = len(f.waiting)

    def _client_gone(self, event: e.ClientGone, now: float) -> None:
        self._withdraw(
            [c for c in self.calls.values() if c.owner == event.owner and not c.keep and not c.also], False, now
        )
        for app in event.apps:
            self._remove(app, now)
        self._released(now)

    # -- instances -----------------------------------------------------------------------------------------------

    def _start(self, f: Function, count: int, now: float, ahead: bool = False) -> int:
        """Starts up to `count` instances, as far as limits, CPU and memory allow; returns how many. `ahead`: of calls."""
        spec = f.spec
        started = 0
        while started < count:
            if spec.max_instances and len(f.instances) >= spec.max_instances:
                break
            if self.cpu_used + f.cpu > self.cpu or not self._make_room(f, ahead, now):
                break
            self._instance_ids += 1
            instance = Instance(self._instance_ids, f, now)
            self.instances[instance.id] = f.instances[instance.id] = instance
            f.starting += 1
            self.cpu_used += f.cpu
            self.memory_used += spec.memory_bytes
            self._wake(instance, now + spec.startup_timeout_s)
            self.tree.start(instance, now, self._out)
            started += 1
        if started:
            f.last_start_s = now
        return started

    def _make_room(self, f: Function, ahead: bool, now: float) -> bool:
        """Evicts idle instances, the least worth first, until one of `f` fits. False if it cannot.

        What functions asked to have ahead of calls goes last, and only for a call; it comes back when there is room.
        """
        need = self.memory_used + f.spec.memory_bytes - self.memory_bytes
        if need <= 0:
            return True
        policy = self.keep_alives[""]
        # Of one function's idle instances the longest unused goes first: those are the candidates.
        while need > 0:
            others = (g for g in self.functions.values() if g.idle and g is not f)
            oldest = [next(i for i in g.open.values() if not i.load) for g in others]
            spare = [i for i in oldest if len(i.function.instances) > self._wanted(i.function)]
            idle = spare or ([] if ahead else oldest)
            if not idle:
                return False
            priority, _, victim = min((policy.priority(i, now), i.id, i) for i in idle)
            policy.evicted(victim, priority)
            need -= victim.function.spec.memory_bytes
            self._stop(victim, "memory was needed", now)
            if not spare:
                self._wait_short(victim.function)
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
        f.idle += 1
        self.cpu_used -= f.cpu
        f.open[instance.id] = instance
        failed, f.failures = f.failures, 0
        self._freed(instance, now)
        if failed:
            self._ensure(f, now)

    def _freed(self, instance: Instance, now: float) -> None:
        """An instance has room: the next call, or its keep-alive window."""
        f, spec = instance.function, instance.function.spec
        if not instance.load and instance.uses:
            f.busy -= 1
            f.idle += 1
            self.cpu_used -= f.cpu
            if spec.single_use or instance.version != f.version:
                self._stop(instance, "it was for one call" if spec.single_use else "a newer version is deployed", now)
                self._after_stop(f, now)
                return
        if instance.id not in f.open and instance.load < f.room and instance.version == f.version:
            f.open[instance.id] = instance
        if f.queued:
            if self._blocked and instance.uses and self._yields(f, now):
                self._block(f, now)
            else:
                self._serve(f, now)
        if self._blocked:
            self._released(now)
        if not instance.load and not instance.stopping:
            self._idle(instance, now)

    def _yields(self, f: Function, now: float) -> bool:
        """Whether a freed instance of `f` gives way to a function that waits for room.

        It does if CPU is what is short. If memory is, giving way means losing a warm instance that has calls to run, so it is
        done only for who has waited long. (A new instance never does: it is for the calls it was started for.)
        """
        other = self._blocked[0][2]
        if self.cpu_used + f.cpu + other.cpu > self.cpu:
            return True
        return bool(other.queued) and self._head(other).arrived_s < now - PATIENCE_S

    def _idle(self, instance: Instance, now: float) -> None:
        f = instance.function
        window = f.keep_alive.window(f, now)
        keep_s = window.keep_s
        if window.prewarm_s > 0.0 and instance.uses:
            if len(f.instances) > self._wanted(f):
                self._out.append(e.SetTimer(now + window.prewarm_s, (f"prewarm/{f.prewarm}", f.name)))
                self._stop(instance, "its function is not expected soon", now)
                return
            keep_s = 0.0
        instance.expire_s = now + keep_s
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
            self._lost(
                e.InstanceLost(instance.id, f"it was not ready within {f.spec.startup_timeout_s:g} s"), now, kill=True
            )
            return
        if instance.calls:
            deadline = min(instance.calls.values()) + f.spec.timeout_s
            if now >= deadline:
                self._timed_out(instance, now)
            else:
                self._wake(instance, deadline)
        elif now >= instance.expire_s:
            if len(f.instances) > self._wanted(f):
                self._stop(instance, "its keep-alive ran out", now)
                self._after_stop(f, now)
            elif len(f.instances) > f.spec.min_instances:  # it is there while the function is busy
                instance.expire_s = now + BUFFER_S
                self._wake(instance, instance.expire_s)
            else:
                instance.expire_s = inf
        elif instance.expire_s < inf:
            self._wake(instance, instance.expire_s)

    def _timed_out(self, instance: Instance, now: float) -> None:
        f = instance.function
        running = list(instance.calls.items())
        for id, started in running[:1] if self._one_by_one(f) else running:
            call = self.calls.get(id)
            if call is not None and now >= started + f.spec.timeout_s:
                if call.attempt <= f.spec.retries.max_retries:
                    self._retry(call, now)
                else:
                    self._resolve(
                        call, TIMED_OUT, f"The call ran longer than its timeout of {f.spec.timeout_s:g} s.", b"", now
                    )
        self._stop(instance, "a call ran longer than its timeout", now, kill=True)
        self._after_stop(f, now)

    def _stop(self, instance: Instance, reason: str, now: float, kill: bool = False) -> None:
        """Takes an instance out of the state and has its process ended; calls it still runs go back to the queue."""
        if instance.stopping:
            return
        self._drop(instance, now)
        self._out.append(e.StopInstance(instance.id, reason, kill))
        self._requeue(instance, reason, now, counts=False)

    def _drop(self, instance: Instance, now: float) -> None:
        f = instance.function
        instance.stopping = True
        del self.instances[instance.id]
        del f.instances[instance.id]
        f.open.pop(instance.id, None)
        self.memory_used -= f.spec.memory_bytes
        if not instance.ready:
            f.starting -= 1
            self.cpu_used -= f.cpu
        elif instance.load:
            f.busy -= 1
            self.cpu_used -= f.cpu
        else:
            f.idle -= 1
        if self.queueing.limits:
            for started in instance.calls.values():
                self.queueing.finished(f, False, now - started, "", now)

    def _requeue(self, instance: Instance, reason: str, now: float, counts: bool = True) -> None:
        """What becomes of the calls of an instance that is gone."""
        calls = [self.calls[id] for id in instance.calls if id in self.calls and self.calls[id].instance == instance.id]
        instance.calls.clear()
        one_by_one = self._one_by_one(instance.function)
        for call in reversed(calls):
            began = counts and (call is calls[0] or not one_by_one)  # those handed ahead had not begun
            call.losses += began
            allowed = (
                max(LOSSES, call.function.spec.retries.max_retries)
                if call.keep
                else call.function.spec.retries.max_retries
            )
            if call.losses > allowed:
                self._resolve(call, FAILED, f"The instance that ran the call was lost: {reason}.", b"", now)
            else:
                call.attempt += began
                self._enqueue(call.function, call, front=True)

    def _one_by_one(self, f: Function) -> bool:
        """Whether an instance's calls run one after the other, in the order in which it got them."""
        return f.room == 1 and f.spec.batching is None

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
        self._drop(instance, now)
        if kill:
            self._out.append(e.StopInstance(instance.id, event.reason, True))
        if not instance.ready:
            f.failures += 1
            if event.error or f.failures >= START_FAILURES:
                reason = "" if event.error else f"No instance of {f.name!r} would start: {event.reason}."
                self._fail_waiting(f, reason, event.error, now)
                self._released(now)
                return
        self._requeue(instance, event.reason, now)
        self._after_stop(f, now)

    def _fail_waiting(self, f: Function, reason: str, error: bytes, now: float) -> None:
        """No instance of `f` can be had: the calls that wait for one get to know why."""
        while f.queued:
            self._resolve(self._take(f), FAILED, reason, error, now)

    def _ensure(self, f: Function, now: float) -> None:
        """Keeps the instances that the function asked to have ahead of its calls."""
        missing = self._wanted(f) - len(f.instances)
        if missing <= 0 or f.failures >= START_FAILURES or not self._fits(f):
            return
        if self._start(f, missing, now, ahead=True) < missing:
            self._wait_short(f)

    def _wanted(self, f: Function) -> int:
        """How many instances `f` asked to have ahead of its calls."""
        want = f.spec.min_instances
        if f.busy and f.spec.buffer_instances:
            want = max(want, f.busy + f.spec.buffer_instances)
        return min(want, f.spec.max_instances) if f.spec.max_instances else want

    def _wait_short(self, f: Function) -> None:
        """`f` gets the instances that it asked to have once all calls have theirs and there is room."""
        if not f.short:
            f.short = True
            self._sequence += 1
            heappush(self._blocked, (SHORT, self._sequence, f))

    # -- timers --------------------------------------------------------------------------------------------------

    def _timer(self, event: e.TimerFired, now: float) -> None:
        kind, id = event.key
        if kind == "instance":
            instance = self.instances.get(id)  # type: ignore[arg-type]
            if instance is not None:
                self._instance_timer(instance, now)
        elif kind == "serve":
            f = self.functions.get(id)  # type: ignore[arg-type]
            if f is not None and now >= f.held_s:  # else an earlier one took its place
                f.held_s = inf
                if f.queued:
                    self._serve(f, now)
        elif kind == "retry":
            call = self.calls.get(id)  # type: ignore[arg-type]
            if call is not None and call.instance == RETRIES:
                self._enqueue(call.function, call)
                self._serve(call.function, now)
        elif kind == "tick":
            if id == self._ticks:
                self._tick(now)
        elif kind.startswith("prewarm/"):
            f = self.functions.get(id)  # type: ignore[arg-type]
            if f is not None and f.prewarm == int(kind[8:]) and not f.instances:
                self._start(f, 1, now)
        elif kind.startswith("schedule/"):
            self._scheduled(str(id), int(kind[9:]), now)

    def _tick(self, now: float) -> None:
        policy = self.queueing
        policy.tick(self.cpu_used / self.cpu if self.cpu else 1.0, now)
        self._out.append(e.SetTimer(now + policy.tick_s, ("tick", self._ticks)))
        for f in list(self.functions.values()):
            if f.queued and not f.blocked:
                self._serve(f, now)

    def _scheduled(self, name: str, version: int, now: float) -> None:
        if self.apps.get(name.partition("/")[0], (0,))[0] != version or now < self.due.get(name, inf):
            return
        self._schedule(self.specs[name], now)
        self._inner_calls += 1
        self._submitted(e.Submitted(INNER_CALLS + self._inner_calls, name, keep=True), now)

    def _schedule(self, spec: FunctionSpec, now: float) -> None:
        """Sets the timer of the next call that the clock makes."""
        assert spec.schedule is not None
        self._set_due(spec.name, calendar.next_time(spec.schedule, now))

    def _set_due(self, name: str, at: float) -> None:
        self.due[name] = at
        version = self.apps[name.partition("/")[0]][0]
        self._out.append(e.SetTimer(at, (f"schedule/{version}", name)))

    # -- deployments ---------------------------------------------------------------------------------------------

    def _pool(self, name: str, variant: str) -> Function | None:
        f = self.functions.get(name + variant)
        if f is None:
            spec = self.specs.get(name)
            if spec is None:
                return None
            version = self.apps[name.partition("/")[0]][0]
            f = Function(
                name + variant, spec, variant, version, self._keep_alive(self.chosen.get(name, spec.keep_alive))
            )
            f.waiting = [] if self.queueing.ordered else deque()
            self.functions[f.name] = f
        return f

    def _keep_alive(self, text: str) -> KeepAlive:
        if text not in self.keep_alives:
            self.keep_alives[text] = self._make("keep-alive", text)
        return self.keep_alives[text]

    def _deployed(self, event: e.Deployed, now: float) -> None:
        names = tuple(spec.name for spec in event.functions)
        _, before, _ = self.apps.get(event.app, (0, (), False))
        self.apps[event.app] = (event.version, names, event.ephemeral)
        self._remove_functions([name for name in before if name not in names], now)
        for spec in event.functions:
            self.specs[spec.name] = spec
            pools = self._pools(spec.name)
            for f in pools:
                self._replace(f, spec, event.version, now)
            self.tree.drop(spec.name, now, self._out)
            for f in pools:
                if f.queued:
                    self._serve(f, now)
            self._stand_ready(spec, now)
            self.due.pop(spec.name, None)
            if spec.schedule is not None:
                self._schedule(spec, now)
        if not self._ticks:
            self._start_ticking(now)
        self._released(now)

    def _pools(self, name: str) -> list[Function]:
        """The function of that name, or every parameterisation of the class."""
        return [f for f in self.functions.values() if f.spec.name == name]

    def _stand_ready(self, spec: FunctionSpec, now: float) -> None:
        """What is to be there before the first call."""
        if spec.kind == "function" or spec.min_instances:
            f = self._pool(spec.name, "")
            assert f is not None
            self.tree.prepare(f, now, self._out)
        for f in self._pools(spec.name):
            self._ensure(f, now)

    def _start_ticking(self, now: float) -> None:
        self._ticks += 1
        if self.queueing.tick_s > 0.0:
            self._out.append(e.SetTimer(now + self.queueing.tick_s, ("tick", self._ticks)))

    def _replace(self, f: Function, spec: FunctionSpec, version: int, now: float) -> None:
        """A new version: idle instances go at once, busy ones after their calls, waiting calls get new instances."""
        for instance in [i for i in f.instances.values() if not i.load]:
            self._stop(instance, "a newer version is deployed", now)
        memory_bytes, cpu = f.spec.memory_bytes, f.cpu
        f.become(spec, version, self._keep_alive(self.chosen.get(spec.name, spec.keep_alive)))
        f.failures = 0
        for instance in f.instances.values():  # what they hold is accounted at the new size from here on
            self.memory_used += spec.memory_bytes - memory_bytes
            self.cpu_used += f.cpu - cpu
            f.open.pop(instance.id, None)

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
            self.chosen.pop(name, None)
            self.due.pop(name, None)
            for f in self._pools(name):
                del self.functions[f.name]
                for call in [c for c in self.calls.values() if c.function is f]:
                    self._resolve(call, CANCELLED, f"{name!r} was stopped.", b"", now)
                for instance in list(f.instances.values()):
                    self._stop(instance, "its app was stopped", now)
            self.tree.drop(name, now, self._out)

    # -- the machine ---------------------------------------------------------------------------------------------

    def _node_ready(self, event: e.NodeReady, now: float) -> None:
        self.tree.ready(event, now, self._out)

    def _node_lost(self, event: e.NodeLost, now: float) -> None:
        self.tree.lost(event.node, now, self._out)

    def _policy_set(self, event: e.PolicySet, now: float) -> None:
        if event.seam == "keep-alive" and event.function:
            self.chosen[event.function] = event.policy
            for f in self._pools(event.function):
                self._switch(f, self._keep_alive(event.policy), now)
        elif event.seam == "keep-alive":
            before, self.keep_alives[""] = self.keep_alives[""], self._make("keep-alive", event.policy)
            for f in self.functions.values():
                if f.keep_alive is before:
                    self._switch(f, self.keep_alives[""], now)
        elif event.seam == "queueing":
            self.queueing = self._make("queueing", event.policy)
            for f in self.functions.values():
                calls = [entry[2] if isinstance(entry, tuple) else entry for entry in f.waiting]
                f.waiting = [] if self.queueing.ordered else deque()
                f.queued = 0
                for call in sorted(calls, key=lambda c: c.arrived_s):
                    self._enqueue(f, call)
            self._line_up(now)
            self._start_ticking(now)
        elif event.seam == "cold-start":
            self.tree.policy = self._make("cold-start", event.policy)
        self._released(now)

    def _switch(self, f: Function, policy: KeepAlive, now: float) -> None:
        """Another keep-alive policy decides over `f`, over instances that are idle already too."""
        f.keep_alive = policy
        for instance in [i for i in f.instances.values() if i.ready and not i.load]:
            self._idle(instance, now)

    def _line_up(self, now: float) -> None:
        """All functions with calls that wait, or instances to have, wait for room, in the queueing policy's order."""
        self._blocked.clear()
        for f in self.functions.values():
            f.blocked = f.short = False
            if f.queued:
                self._block(f, now)
            self._wait_short(f)

    def _capacity_set(self, event: e.CapacitySet, now: float) -> None:
        self.cpu, self.memory_bytes = event.cpu, event.memory_bytes
        self.tree.budget_bytes = event.memory_bytes * self.tree_share
        self.tree.trim(now, self._out)
        self._released(now)
        for f in self.functions.values():
            self._ensure(f, now)

    def _restarted(self, event: e.Restarted, now: float) -> None:
        self.tree.clear()
        for instance in list(self.instances.values()):
            self._drop(instance, now)
        self.aliases.clear()
        self.keys = {key: id for key, id in self.keys.items() if id not in self.calls or self.calls[id].keep}
        self.calls = {id: call for id, call in self.calls.items() if call.keep}
        for call in self.calls.values():
            call.also = ()
        for app in [name for name, (_, _, ephemeral) in self.apps.items() if ephemeral]:
            self._remove(app, now)
        for f in self.functions.values():
            f.waiting.clear()
            f.queued, f.failures, f.held_s = 0, 0, inf
        for call in self.calls.values():
            self._enqueue(call.function, call)
        self._line_up(now)
        self._released(now)
        for spec in self.specs.values():
            self._stand_ready(spec, now)
        for name, at in self.due.items():
            self._set_due(name, max(now, at))
        self._start_ticking(now)
