"""One simulated day: a control plane, machines, stores and clocks in one thread, and the user's app on them.

The plane, the controller and the policies are those that run live. Operations take no time of their own, so that a task
goes on until it waits: whatever two tasks do to each other in between comes from a fault, which can be named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nubes.client import finding
from nubes.drivers.local.plane import Plane
from nubes.functions import events as e
from nubes.functions.controller import Functions
from nubes.functions.events import INNER_CALLS
from nubes.kernel.errors import Unavailable, UsageError
from nubes.storm import senses
from nubes.storm.attempts import Attempt, describe
from nubes.storm.client import AWAY, SimulatedClient
from nubes.storm.hands import NEWS_S, Instance, SimulatedHands
from nubes.storm.inbox import Inbox
from nubes.storm.journal import Journal, Loop
from nubes.storm.operations import Opened, Operation
from nubes.storm.present import Present
from nubes.storm.program import Program
from nubes.storm.spec import CLOCK, DELAY, KILL, MACHINE, RESTART, Fault, beneath, child
from nubes.storm.stores import MemoryStores
from nubes.storm.tasks import Task, Tasks

EPOCH_S = 1_700_000_000.0  # when every day begins
MACHINES, CPU, MEMORY_BYTES = 2, 8.0, 16 << 30
DOWN_S = 1.0  # how long a control plane is away
REJOIN_S = 5.0  # until another machine takes the place of one that was lost
SCENARIO_OWNER = 1

Points = Callable[["Attempt"], Fault | None]


class World:
    """The day. `points` says which fault, if any, is at the point that an attempt has reached."""

    def __init__(
        self, program: Program, seed: int, points: Points, tell: Callable[[float, int, str], None] | None
    ) -> None:
        self.program = program
        self.seed = seed
        self.points = points
        self.specs: Mapping[str, Any] = {spec.name: spec for spec in program.specs}
        self.tasks = Tasks(EPOCH_S)
        self.stores = MemoryStores()
        self.client = SimulatedClient(self)
        self.journal = Journal(Functions(cpu=CPU, memory_bytes=MEMORY_BYTES), self.tasks)
        self.fired: list[Fault] = []
        self.order: list[tuple[int, str, int, int]] = []  # of the points that were reached
        self.operations = 0
        self.quiet = False  # no faults any more
        self.down = False
        self.stepped_s = 0.0  # of the wall clock, so far
        self.generation = 0  # of the control plane
        self.paths: dict[int, str] = {0: ""}
        self.attempts: dict[int, int] = {}
        self.tells = tell is not None
        self.began_s = EPOCH_S
        self._tell = tell
        self.inboxes: set[Inbox] = set()
        self._stirred: list[Task] = []
        Present.world = self
        senses.install(Present())
        finding.use(self.client)
        self._rise()
        self.plane.feed(e.Deployed(program.app, 1, program.specs))

    def _rise(self) -> None:
        """A control plane begins, or comes back."""
        self.down = False
        self.loop = Loop(self.tasks)
        self.hands = SimulatedHands(self)
        self.plane = Plane(self.journal)  # type: ignore[arg-type]
        self.plane.recover(self.loop, lambda _: lambda: self.tasks.now)  # type: ignore[arg-type]
        machines = [e.MachineReady(CPU, MEMORY_BYTES, id) for id in range(MACHINES)]
        self.plane.begin(self.hands, {}, *machines)

    # -- what the client asks ------------------------------------------------------------------------------------------

    def functions(self) -> list[dict[str, Any]]:
        """As the ask `functions`."""
        return [
            {"name": s.name, "kind": s.kind, "methods": list(s.methods), "generator": s.generator, "web": False}
            for s in self.program.specs
        ]

    def reach(self) -> None:
        """Raises `Unavailable` while the control plane is away."""
        if self.down:
            raise Unavailable(AWAY, "Start one with `nubes up`.")

    def operation(self, what: Callable[[], str], reaches: bool = True) -> Operation:
        """`with world.operation(...)`: what is done within is an operation of the attempt that runs here."""
        return Operation(self, what, reaches)

    def new_call(self, function: str) -> tuple[int, int]:
        """The id of a call that is made here, and the connection it comes from."""
        task = self.task()
        attempt: Attempt = task.about
        attempt.calls += 1
        id = child(attempt.id, attempt.number, attempt.calls)
        self.paths[id] = beneath(attempt.call, attempt.number, attempt.calls)
        return id, task.home.owner

    def inbox(self) -> Opened:
        return Opened(self)

    def wait_for_stir(self, what: str, until: float | None) -> None:
        """Waits until a queue changes, or that time. Raises `Unavailable` if the control plane goes away."""
        task, generation = self.task(), self.generation
        self._stirred.append(task)
        if until is not None:
            self.tasks.call_later(until - self.tasks.now, self.stir)
        self.tasks.wait(what)
        if generation != self.generation:
            raise Unavailable(AWAY, "Start one with `nubes up`.")

    def stir(self) -> None:
        waiting, self._stirred = self._stirred, []
        for task in waiting:
            self.tasks.wake(task)

    def task(self) -> Task:
        task = self.tasks.here()
        if task is None or task.about is None:
            raise UsageError(
                "This thread is not part of the storm.",
                "Call nubes from the function itself; several calls at once are .map() or .spawn().",
            )
        return task

    # -- attempts and their points -------------------------------------------------------------------------------------

    def begin(self, call: int, instance: Instance, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """An instance takes up a call."""
        number = self.attempts[call] = self.attempts.get(call, 0) + 1
        path = self.paths.setdefault(call, f"@{call - INNER_CALLS}")
        function = instance.spec.name.partition("/")[2]
        task = self.tasks.current
        assert task is not None
        attempt = task.about = Attempt(call, path, function, number)
        if self._tell is not None:
            given = ", ".join([repr(one) for one in args] + [f"{name}={one!r}" for name, one in kwargs.items()])
            again = f", attempt {number}" if number > 1 else ""
            self.say(0, f"{function}({given}) begins: call {path}{again}, on machine {instance.machine}")
        self.point(attempt)

    def finish(self, instance: Instance) -> None:
        """The call that runs here has its answer, and nobody knows of it yet."""
        attempt: Attempt = self.task().about
        if attempt.id >= 0:
            attempt.after += 1
            self.point(attempt)
        self.be(instance)

    def be(self, instance: Instance) -> None:
        """What this task does now is no call's: an instance's set-up and its end. No faults have their place there."""
        task = self.tasks.current
        assert task is not None
        task.about = Attempt(-instance.id, f"#{instance.id}", instance.spec.name.partition("/")[2], 1)

    def point(self, attempt: Attempt) -> None:
        if self.quiet or attempt.call.startswith("#"):
            return
        self.order.append((attempt.id, attempt.function, attempt.number, attempt.after))
        fault = self.points(attempt)
        if fault is not None:
            self.fire(fault)

    def fire(self, fault: Fault) -> None:
        """Makes a fault come about here. Does not return to a task that it ends."""
        home = self.task().home
        if not isinstance(home, Instance) and fault.kind in (KILL, MACHINE):
            return
        self.fired.append(fault)
        self.say(0, "FAULT: " + describe(fault))
        if fault.kind == DELAY:
            self.tasks.sleep(fault.seconds)
        elif fault.kind == CLOCK:
            self.stepped_s += fault.seconds
        elif fault.kind == RESTART:
            self._restart()
        elif isinstance(home, Instance) and fault.kind == KILL:
            self.hands.kill(home, "its process was ended by SIGKILL")
        elif isinstance(home, Instance):
            machine = home.machine
            back = e.MachineReady(CPU, MEMORY_BYTES, machine)
            self.loop.call_later(NEWS_S, self.plane.feed, e.MachineLost(machine, f"machine {machine} is gone"))
            self.loop.call_later(REJOIN_S, self.plane.feed, back)
            self.hands.lose(machine)

    def _restart(self) -> None:
        self.down = True
        self.generation += 1
        self.loop.close()
        for inbox in self.inboxes:
            inbox.lost()
        self.stir()
        self.tasks.call_later(DOWN_S, self._rise)
        self.hands.lose(-1)

    def say(self, depth: int, what: str) -> None:
        if self._tell is not None:
            self._tell(self.tasks.now - EPOCH_S, depth, what)

    def tell(self, verb: str, what: Any) -> None:
        if self._tell is not None:
            self.say(1, f"{verb} {what!r}")

    # -- rest ----------------------------------------------------------------------------------------------------

    @property
    def rests(self) -> bool:
        """Whether no call is under way."""
        return not self.down and not self.plane.controller.calls

    def close(self) -> None:
        """The day is over. What still waits never goes on."""
        for one in list(self.hands.instances.values()):
            self.tasks.end(one)
        self.tasks.close()
        finding.use(None)
        Present.world = None
