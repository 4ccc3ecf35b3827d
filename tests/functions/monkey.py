"""A driver that does to the functions controller whatever a hostile day could: seeded, so that every run can be repeated.

It plays the machine (processes that start, answer, die, answer too late), the clients and the clock, checks every
command against what it knows of the machine, and every state against `nubes.functions.invariants`.
"""

from __future__ import annotations

import hashlib
import pickle
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from heapq import heappop, heappush
from math import inf
from typing import Any

from nubes.functions import events as e
from nubes.functions import invariants
from nubes.functions.answers import followed
from nubes.functions.controller import Functions
from nubes.functions.events import INNER_CALLS
from nubes.functions.seams import (
    ColdStart,
    FunctionView,
    Grow,
    InstanceView,
    KeepAlive,
    NodeView,
    Plan,
    Queueing,
    Window,
)
from nubes.functions.spec import Batching, FunctionSpec, Retries, Schedule
from nubes.functions.state import RETRIES
from nubes.kernel import policy as registry
from nubes.kernel.message import Codec
from nubes.kernel.policy import decision, policies, policy
from nubes.serving.seams import Balancing, Hedging, Probe, ReplicaView

MIB = 1 << 20
CODEC = Codec(e.EVENTS)
SEAMS = ("keep-alive", "queueing", "cold-start", "placement", "balancing", "hedging", "disruption")
OURS = ("monkey", "monkey-limits")


class _Dice:
    """Chance that is plain data: it is pickled with its policy and is the same in every process."""

    def __init__(self) -> None:
        self.state = 1

    def roll(self, sides: int) -> int:
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state >> 33) % sides


@contextmanager
def monkey_policies() -> Iterator[None]:
    """Puts the policies that decide by dice on their seams, and takes them off again."""

    @policy("monkey")
    class MonkeyKeepAlive(KeepAlive):
        def __init__(self) -> None:
            self.dice = _Dice()

        def window(self, f: FunctionView, now: float) -> Window:
            return Window((0.0, 0.0, 7.0)[self.dice.roll(3)], (0.0, 3.0, 60.0, inf)[self.dice.roll(4)])

        def start(self, f: FunctionView, now: float) -> int:
            return self.dice.roll(f.queued + 2)

        def priority(self, instance: InstanceView, now: float) -> float:
            return float(self.dice.roll(10))

    @policy("monkey-limits")
    class MonkeyQueue(Queueing):
        ordered, limits, tick_s = True, True, 5.0

        def __init__(self) -> None:
            self.dice = _Dice()
            self.running: dict[str, int] = {}

        def order(self, f: FunctionView, call: Any) -> tuple[float, ...]:
            return (float(call.id % 3), call.arrived_s)

        def admit(self, f: FunctionView, now: float) -> float:
            if self.running.get(f.name, 0) >= 6:
                return inf
            return now + 2.5 if self.dice.roll(10) == 0 else now

        def issued(self, f: FunctionView, now: float) -> None:
            self.running[f.name] = self.running.get(f.name, 0) + 1

        def finished(self, f: FunctionView, ok: bool, exec_s: float, backpressure: str, now: float) -> None:
            self.running[f.name] = self.running.get(f.name, 0) - 1

    @policy("monkey")
    class MonkeyTree(ColdStart):
        def __init__(self) -> None:
            self.dice = _Dice()

        @decision
        def plan(self, f: FunctionView, nodes: Mapping[int, NodeView], now: float) -> Plan:
            ready = [0, *(id for id, node in nodes.items() if node.ready)]
            grow = [
                Grow((f"m{self.dice.roll(2)}",), f.spec.name if self.dice.roll(2) else "")
                for _ in range(self.dice.roll(3))
            ]
            return Plan(ready[self.dice.roll(len(ready))], tuple(grow), wait=bool(self.dice.roll(3)))

        def worth(self, node: NodeView, now: float) -> float:
            return float(self.dice.roll(5))

    @policy("monkey")
    class MonkeyBalancing(Balancing):
        poll_s = 1.0

        def __init__(self) -> None:
            self.dice = _Dice()
            self.running: dict[int, int] = {}

        def probes(self, replicas: Sequence[ReplicaView], now: float) -> Sequence[ReplicaView]:
            return [replica for replica in replicas if self.dice.roll(2)]

        def choose(self, replicas: Sequence[ReplicaView], now: float, answers: Sequence[Probe] = ()) -> ReplicaView:
            return replicas[self.dice.roll(len(replicas))]

        def shadow(self, replicas: Sequence[ReplicaView], now: float) -> ReplicaView | None:
            return replicas[self.dice.roll(len(replicas))] if self.dice.roll(3) == 0 else None

        def sent(self, replica: ReplicaView, now: float) -> None:
            self.running[replica.id] = self.running.get(replica.id, 0) + 1

        def answered(self, replica: ReplicaView, ok: bool, latency_s: float, now: float) -> None:
            self.running[replica.id] = self.running.get(replica.id, 0) - 1

        def left(self, replica: ReplicaView) -> None:
            self.running.pop(replica.id, None)

    @policy("monkey")
    class MonkeyHedging(Hedging):
        copies = 2

        def __init__(self) -> None:
            self.dice = _Dice()

        def delay_s(self, now: float) -> float:
            return (0.001, 0.5, inf)[self.dice.roll(3)]

        def spend(self, now: float) -> float:
            return (now, now, now + 0.3, inf)[self.dice.roll(4)]

    ours = (MonkeyKeepAlive, MonkeyQueue, MonkeyTree, MonkeyBalancing, MonkeyHedging)
    made = [(c.seam, c.name) for c in ours]
    for cls in ours:  # so that they can be pickled
        cls.__qualname__ = cls.__name__
        globals()[cls.__name__] = cls
    try:
        yield
    finally:
        for key in made:
            del registry._POLICIES[key]


class Failure(AssertionError):
    """What the monkey found, with what led to it."""


class _Process:
    def __init__(self, function: str, machine: int) -> None:
        self.function = function
        self.machine = machine
        self.ready = False
        self.calls: set[int] = set()


class Monkey:
    """One seeded run. `names`: the policies to draw from, by seam."""

    with_key = 0.1  # how many calls have one

    def __init__(
        self, seed: int, names: dict[str, list[str]] | None = None, twins: bool = True, trace: bool = False
    ) -> None:
        self.r = r = random.Random(seed)
        self.seed, self.twins, self.trace = seed, twins, trace
        self.names = names or {s: [p.name for p in policies(s)] for s in SEAMS}
        self.exec_s = r.choice([1.0, 1e-5])
        self.now = 1_700_000_000.0
        self.cpu = r.choice([1.0, 2.0, 4.0, 16.0, inf])
        self.memory = r.choice([512 * MIB, 2048 * MIB, 16384 * MIB])
        self.chosen = {seam: r.choice(self.names[seam]) for seam in self.names}
        self.began = (*(self.chosen[seam] for seam in ("keep-alive", "queueing", "cold-start")), self.cpu, self.memory)
        self.c = self.start()
        self.fold = hashlib.sha256()  # of all commands
        self.twin: Functions | None = None
        self.twin_until = 0
        self.timers: list[tuple[float, int, tuple[str, str | int]]] = []
        self.processes: dict[int, _Process] = {}
        self.dead: list[int] = []  # instances that are gone, of which late news may come
        self.nodes: dict[int, bool] = {}  # -> ready
        self.machines: dict[int, bool] = {0: True}  # -> whether it takes anything
        self.node_machine: dict[int, int] = {}
        self.calls: dict[int, e.Submitted] = {}  # accepted, not resolved
        self.copies = 0  # calls that were sent to a second instance
        self.shared = 0  # plain calls that ended while a durable one waited for their answer
        self.gone: set[int] = set()  # resolved
        self.last = 0  # id of the newest call
        self.events: list[tuple[float, Any]] = []
        self.specs: dict[str, dict[str, FunctionSpec]] = {}
        self.version = 0
        self.owners = range(1, 5)
        self.excess = (0.0, 0.0)
        self.switched = False
        self.asked: list[e.AskDisruption] = []  # what applications have yet to answer

    # -- what may happen -------------------------------------------------------------------------------------------

    def run(self, steps: int) -> Monkey:
        try:
            self.deploy()
            for _ in range(steps):
                self.step()
            self.drain()
        except Failure:
            raise
        except Exception as error:
            raise Failure(self.story(f"{type(error).__name__}: {error}")) from error
        return self

    def start(self) -> Functions:
        """The controller as it was before the first event."""
        return Functions(*self.began)  # type: ignore[arg-type]

    def story(self, what: str) -> str:
        last = "\n".join(f"  {at - 1.7e9:10.3f} {event}"[:200] for at, event in self.events[-12:])
        return f"seed {self.seed}, policies {self.chosen}, event {len(self.events)}: {what}\n{last}"

    def step(self) -> None:
        r = self.r
        self.pass_time(r.choice([0.0, 0.0, 0.0, 0.01, 0.3, 1.0, 5.0, 40.0]) * r.random())
        likely: list[tuple[float, Callable[[], None]]] = [
            (30, self.submit), (20, self.ready), (25, self.finish), (5, self.lose), (4, self.cancel), (1, self.hang_up),
            (6, self.node_ready), (2, self.node_lost), (2, self.spurious), (1, self.deploy), (0.3, self.remove),
            (1, self.switch), (0.7, self.resize), (0.4, self.restart),
            (0.8, self.machine_ready), (0.5, self.machine_drains), (0.5, self.machine_lost), (1, self.fork_twin),
            (1, self.answer_disruption),
        ]  # fmt: skip
        r.choices([what for _, what in likely], [weight for weight, _ in likely])[0]()

    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        budget = 50  # a storm of timers is a failure of its own
        while self.timers and self.timers[0][0] <= until:
            at, _, key = heappop(self.timers)
            self.now = max(self.now, at)
            self.feed(e.TimerFired(key))
            budget -= seconds == 0.0
            if not budget:
                raise Failure(self.story("timers set each other off without end"))
        self.now = until

    def submit(self) -> None:
        r = self.r
        name = r.choice([*(n for app in self.specs.values() for n in app), "a/nobody"])
        spec = next((app[name] for app in self.specs.values() if name in app), None)
        variant = f"({r.randrange(2)})" if spec and spec.kind == "class" and r.random() < 0.7 else ""
        others = [n for app in self.specs.values() for n in app]
        for _ in range(r.choice([1, 1, 1, 5])):
            self.last += 1
            keep = r.random() < 0.4
            event = e.Submitted(
                self.last, name, keep, r.choice(["", "m"]), variant,
                tuple(r.choices(others, k=r.randrange(1, 3))) if others and r.random() < 0.1 else (),
                r.choice(["k1", "k2"]) if r.random() < self.with_key else "",
                b"input" if keep else b"", r.choice(self.owners),
            )  # fmt: skip
            self.calls[event.call] = event
            self.feed(event)
            pool = name + variant
            if event.key and keep and event.call in self.calls and event.call not in self.c.calls:
                first = self.c.keys.get((pool, event.key), 0)
                if first not in self.c.calls and first not in self.c.results:
                    raise Failure(self.story(f"call {event.call} was taken for {first}, which nobody knows"))
                del self.calls[event.call]

    def ready(self) -> None:
        starting = [id for id, p in self.processes.items() if not p.ready and p.function]
        if starting:
            id = self.r.choice(starting)
            self.processes[id].ready = True
            self.feed(e.InstanceReady(id, (0.0, 0.1)))

    def finish(self, ok: float = 0.8) -> None:
        running = [(id, call) for id, p in self.processes.items() for call in sorted(p.calls)]
        if running:
            id, call = self.r.choice(running)
            self.processes[id].calls.discard(call)
            event = self.calls.get(call)
            shared = event is not None and call in self.c.calls and followed(self.c, self.c.calls[call])
            self.shared += shared
            keep = event is not None and (event.keep or (shared and self.r.random() < 0.8))
            backpressure = "db" if self.r.random() < 0.02 else ""
            self.feed(
                e.Finished(
                    call,
                    id,
                    self.r.random() < ok,
                    self.r.random() * self.exec_s,
                    b"out" if keep else b"",
                    backpressure,
                    keep,
                )
            )

    def lose(self) -> None:
        if self.processes:
            id = self.r.choice(list(self.processes))
            was_ready = self.processes.pop(id).ready
            self.dead.append(id)
            error = b"SyntaxError" if not was_ready and self.r.random() < 0.2 else b""
            self.feed(e.InstanceLost(id, "it was killed", error))

    def cancel(self) -> None:
        if self.last:
            call = (
                self.r.choice(list(self.calls))
                if self.calls and self.r.random() < 0.8
                else self.r.randint(1, self.last)
            )
            self.feed(e.Cancelled(call, self.r.random() < 0.3))

    def hang_up(self) -> None:
        owner = self.r.choice(self.owners)
        apps = tuple(a for a in list(self.specs) if a == "eph" and self.r.random() < 0.5)
        for app in apps:
            del self.specs[app]
        self.feed(e.ClientGone(owner, apps))
        left = [id for id, event in self.calls.items() if event.owner == owner and not event.keep]
        for id in left:  # only as somebody else waits for the same work
            call = self.c.calls.get(id)
            if call is None or not call.also:
                raise Failure(self.story(f"call {id} outlived its client {owner}"))

    def node_ready(self) -> None:
        growing = [id for id, ready in self.nodes.items() if not ready]
        if growing:
            id = self.r.choice(growing)
            self.nodes[id] = True
            self.feed(e.NodeReady(id, 0.5, self.r.choice([1, 60, 300]) * MIB))

    def node_lost(self) -> None:
        if self.nodes:
            id = self.r.choice(list(self.nodes))
            del self.nodes[id]
            self.feed(e.NodeLost(id, "it was killed"))

    def spurious(self) -> None:
        """News of what is gone, timers that nobody set, answers to calls that nobody asked."""
        r = self.r
        id = r.choice(self.dead) if self.dead else 10**6
        name = r.choice([n for app in self.specs.values() for n in app] or ["a/f0"])
        self.feed(
            r.choice(
                [
                    e.InstanceReady(id),
                    e.InstanceLost(id, "late"),
                    e.Finished(r.randint(1, self.last + 1), id, True, 0.1),
                    e.TimerFired(("instance", id)),
                    e.TimerFired(("instance", r.choice([*self.processes, id]))),
                    e.TimerFired(("serve", name)),
                    e.TimerFired(("retry", r.randint(1, self.last + 1))),
                    e.TimerFired((f"prewarm/{r.randrange(20)}", name)),
                    e.TimerFired(("schedule/0", name)),
                    e.NodeReady(10**6, 0.1),
                    e.NodeLost(10**6),
                    e.Removed("nobody"),
                ]
            )
        )

    def answer_disruption(self) -> None:
        """An application that was asked lets some of its instances go, and perhaps some that it was not asked of."""
        if self.asked:
            asked = self.asked.pop(self.r.randrange(len(self.asked)))
            ids = [*(one.id for one in asked.pending), *self.dead[-2:]]
            allowed = tuple(id for id in ids if self.r.random() < 0.6)
            self.feed(e.DisruptionAnswered(asked.function + asked.variant, asked.offer, allowed))

    def spec(self, name: str) -> FunctionSpec:
        r = self.r
        batching = Batching(r.choice([2, 3]), r.choice([0.0, 0.5])) if r.random() < 0.2 else None
        single = batching is None and r.random() < 0.1
        return FunctionSpec(
            name=name,
            kind=r.choice(["function", "function", "class"]),
            cpu=r.choice([0.0, 0.1, 0.125, 0.3, 1.0, 2.0]),
            memory_bytes=r.choice([32, 128, 300, 1024]) * MIB,
            timeout_s=r.choice([2.0, 300.0]),
            startup_timeout_s=r.choice([3.0, 300.0]),
            retries=Retries(r.choice([0, 0, 1, 3]), 2.0, r.choice([0.0, 1.0]), 10.0),
            concurrency=1 if batching or single else r.choice([1, 1, 2, 5]),
            min_instances=r.choice([0, 0, 0, 1, 3]),
            max_instances=r.choice([0, 0, 3, 4]),
            buffer_instances=r.choice([0, 0, 0, 1]),
            max_queued=r.choice([3, 100_000]),
            keep_alive=r.choice(["", "", "fixed-window(keep=20s)", *self.names["keep-alive"]]),
            batching=batching,
            schedule=r.choice([None, None, None, Schedule(period_s=30.0), Schedule(cron="* * * * *")]),
            environment=r.choice(["", "env"]),
            single_use=single,
            criticality=r.randrange(3),
            balancing=r.choice(["", "", *self.names.get("balancing", ["monkey"])]),
            hedging=r.choice(["", "", *self.names.get("hedging", ["monkey"])]),
            idempotent=r.random() < 0.5,
            disruption=r.choice(["", "quorum(up=1)", "quorum(up=3)", *self.names.get("disruption", ["one-by-one"])]),
            methods=r.choice([(), ("may_go",)]),
        )

    def deploy(self) -> None:
        r = self.r
        app = r.choice(["a", "a", "b", "eph"])
        self.version += 1
        names = [f"{app}/f{i}" for i in range(4) if r.random() < 0.7]
        same = self.specs.get(app, {})
        specs = {n: same[n] if n in same and r.random() < 0.3 else self.spec(n) for n in names}
        self.specs[app] = specs
        self.feed(e.Deployed(app, self.version, tuple(specs.values()), app == "eph"))

    def remove(self) -> None:
        if self.specs:
            app = self.r.choice(list(self.specs))
            del self.specs[app]
            self.feed(e.Removed(app))

    def switch(self) -> None:
        seam = self.r.choice(list(self.names))
        functions = [n for app in self.specs.values() for n in app]
        one = seam in ("keep-alive", "balancing", "hedging") and functions and self.r.random() < 0.5
        name = self.r.choice(self.names[seam])
        self.switched |= seam == "queueing"
        self.feed(e.PolicySet(seam, name, self.r.choice(functions) if one else ""))

    def resize(self) -> None:
        self.machines[0] = True
        self.cpu = self.r.choice([1.0, 2.0, 4.0, 16.0])
        self.memory = self.r.choice([512, 2048, 16384]) * MIB
        self.feed(e.MachineReady(self.cpu, self.memory))

    def machine_ready(self) -> None:
        id = self.r.randrange(4)
        self.machines[id] = True
        cpu, memory = self.r.choice([0.5, 2.0, 16.0]), self.r.choice([512, 2048, 16384]) * MIB
        self.feed(e.MachineReady(cpu, memory, id, self.r.choice(["", "rack"])))

    def machine_drains(self) -> None:
        id = self.r.randrange(5)
        if id in self.machines:
            self.machines[id] = False
        self.feed(e.MachineDraining(id, self.r.choice([inf, inf, 5.0, 60.0])))

    def machine_lost(self) -> None:
        id = self.r.randrange(5)
        self.machines.pop(id, None)
        gone = [i for i, p in self.processes.items() if p.machine == id]
        self.dead += gone
        for i in gone:
            del self.processes[i]
        for node in [n for n in self.nodes if self.node_machine[n] == id]:
            del self.nodes[node]
        self.feed(e.MachineLost(id, "its power failed"))

    def restart(self) -> None:
        if self.r.random() < 0.5:  # as a driver does, from a snapshot
            self.c = pickle.loads(pickle.dumps(self.c, 5))
        self.dead += list(self.processes)
        self.processes.clear()
        self.nodes.clear()
        self.machines = {id: True for id in self.machines if not id}
        self.timers.clear()
        self.specs.pop("eph", None)
        for id in [id for id, event in self.calls.items() if not event.keep]:
            del self.calls[id]
            self.gone.add(id)
        self.pass_time(self.r.choice([0.0, 10.0, 1000.0]))
        self.feed(e.Restarted())
        if self.r.random() < 0.5:
            self.machines[0] = True
            self.feed(e.MachineReady(self.cpu if self.cpu < inf else 64.0, self.memory))

    def fork_twin(self) -> None:
        """From here on a copy of the controller sees what the controller sees."""
        if self.twins:
            self.twin = pickle.loads(pickle.dumps(self.c, 5))
            self.twin_until = len(self.events) + 100

    # -- what must hold ----------------------------------------------------------------------------------------------

    def feed(self, event: Any) -> None:
        self.events.append((self.now, event))
        now, event = CODEC.decode(CODEC.encode(self.now, event))
        if self.trace:
            print(f"{self.now - 1.7e9:10.3f} {event}")
        commands = self.c.handle(event, now)
        if self.trace:
            print("".join(f"             -> {command}\n" for command in commands), end="")
        self.fold.update(repr(commands).encode())
        if self.twin is not None:
            if self.twin.handle(event, now) != commands:
                raise Failure(self.story("a pickled copy answers differently"))
            if len(self.events) > self.twin_until:
                self.twin = None
        before = self.excess
        for command in commands:
            self.obey(command, event)
        self.excess = invariants.excess(self.c)
        problems = invariants.check(self.c)
        if not isinstance(event, (e.MachineReady, e.Deployed)) and (
            self.excess[0] > before[0] or self.excess[1] > before[1]
        ):
            problems.append(f"in use beyond capacity: {before} before, {self.excess} now")
        for id, process in self.processes.items():
            instance = self.c.instances.get(id)
            if instance is None:
                problems.append(f"the process of instance {id} runs, but the controller forgot it")
            elif set(instance.calls) != process.calls:
                problems.append(f"instance {id} runs {process.calls}, but the controller says {sorted(instance.calls)}")
        known = set(self.c.calls) | set(self.c.aliases)
        if lost := [id for id in self.calls if id not in known and not self.absorbed(id)]:
            problems.append(f"calls {lost} are neither answered nor known")
        pending = {(at, key) for at, _, key in self.timers}
        problems += [f"nobody will fire {key} at {at}" for at, key in self.timers_wanted() if (at, key) not in pending]
        retries = {key[1] for _, _, key in self.timers if key[0] == "retry"}
        if forgotten := [c.id for c in self.c.calls.values() if c.instance == RETRIES and c.id not in retries]:
            problems.append(f"calls {forgotten} are never tried again")
        if self.chosen["queueing"] == "monkey-limits" and not self.switched:
            running = self.c.queueing.running
            for f in self.c.functions.values():
                if running.get(f.name, 0) != sum(i.load for i in f.instances.values()):
                    problems.append(f"{f.name}: the queueing policy thinks that {running.get(f.name, 0)} calls run")
        if problems:
            raise Failure(self.story("; ".join(problems)))

    def timers_wanted(self) -> Iterator[tuple[float, tuple[str, str | int]]]:
        """The timers that the controller relies on."""
        for instance in self.c.instances.values():
            if instance.wake_s < inf:
                yield instance.wake_s, ("instance", instance.id)
        for f in self.c.functions.values():
            if f.held_s < inf:
                yield f.held_s, ("serve", f.name)
            if f.control is not None and f.control.pending and f.control.wake_s < inf:
                yield f.control.wake_s, ("disruption", f.name)
        yield from ((at, ("hedge", call)) for call, at in self.c.late.items())
        for name, at in self.c.due.items():
            yield at, (f"schedule/{self.c.apps[name.partition('/')[0]][0]}", name)

    def absorbed(self, id: int) -> bool:
        return id == self.last and bool(self.calls[id].key) and self.calls[id].keep

    def obey(self, command: Any, event: Any) -> None:
        """Does what the controller wants done, if it can be done."""
        kind = type(command)
        wrong = ""
        if kind is e.StartInstance:
            if command.instance in self.processes or command.instance in self.dead:
                wrong = "started twice"
            if command.node and command.node not in self.nodes:
                wrong = "forked from a parent that is gone"
            if not self.machines.get(command.machine):
                wrong = "started on a machine that takes nothing"
            if command.node and self.node_machine.get(command.node) != command.machine:
                wrong = "forked from a parent of another machine"
            self.processes[command.instance] = _Process(command.function, command.machine)
        elif kind is e.StopInstance:
            self.processes.pop(command.instance, None)  # one that still waits for its parent has no process
            self.dead.append(command.instance)
        elif kind is e.Dispatch:
            process = self.processes.get(command.instance)
            if process is None or not process.ready:
                wrong = "dispatched to an instance that is not there"
            elif process.calls & set(command.calls):
                wrong = "dispatched to an instance that runs it already"
            else:
                running = {id for p in self.processes.values() for id in p.calls}
                elsewhere = {id for id in command.calls if id in running and (id in self.calls or id >= INNER_CALLS)}
                if bool(elsewhere) != command.copy:
                    wrong = f"calls {elsewhere} run elsewhere"
                self.copies += command.copy
                process.calls |= set(command.calls)
            for i, id in enumerate(command.calls):
                call = self.calls.get(id)
                if call is None and id < INNER_CALLS:
                    wrong = f"call {id} is over"
                elif call is not None and call.keep and not command.inputs[i]:
                    wrong = f"durable call {id} has no input"
        elif kind is e.Interrupt:
            if command.call not in self.processes[command.instance].calls:
                wrong = "that instance does not run that call"
        elif kind is e.Resolve:
            if command.call < INNER_CALLS:
                if command.call in self.gone or command.call not in self.calls:
                    wrong = "resolved twice"
                self.calls.pop(command.call, None)
                self.gone.add(command.call)
        elif kind is e.SetTimer:
            if not self.now <= command.at <= inf:
                wrong = "a timer in the past"
            if command.at < inf:
                heappush(self.timers, (command.at, len(self.timers) + len(self.events) * 1000, command.key))
        elif kind is e.GrowNode:
            if command.node in self.nodes or (command.parent and command.parent not in self.nodes):
                wrong = "grown twice, or from nothing"
            if command.machine not in self.machines:
                wrong = "grown on a machine that is gone"
            self.nodes[command.node] = False
            self.node_machine[command.node] = command.machine
        elif kind is e.PruneNode:
            if self.nodes.pop(command.node, None) is None:
                wrong = "pruned twice"
        elif kind is e.AskDisruption:
            if command.method not in self.c.specs[command.function].methods:
                wrong = "it has no such method"
            self.asked.append(command)
        elif kind is e.Drained:
            if self.machines.get(command.machine, True) or any(
                p.machine == command.machine for p in self.processes.values()
            ):
                wrong = "it is not"
        else:
            wrong = "unknown"
        if wrong:
            raise Failure(self.story(f"{command}: {wrong}"))

    def drain(self) -> None:
        """No more work comes and all that runs answers well: every call must be answered."""
        if not any(self.machines.values()):
            self.machines[0] = True
            self.feed(e.MachineReady(64.0, 16384 * MIB))
        for _ in range(5000):
            if not self.calls:
                return
            if any(not ready for ready in self.nodes.values()):
                self.node_ready()
            elif any(not p.ready for p in self.processes.values()):
                self.ready()
            elif any(p.calls for p in self.processes.values()):
                self.finish(ok=1.0)
            elif self.timers:
                self.pass_time(max(0.001, self.timers[0][0] - self.now))
            else:
                break
        left = {id: self.c.calls.get(id) and self.c.calls[id].instance for id in self.calls}
        raise Failure(self.story(f"calls that were never answered (call -> instance): {left}"))

    def digest(self) -> str:
        return self.fold.hexdigest()
