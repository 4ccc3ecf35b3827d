"""Machines with agents. Real are the lives of an agent, with line, lease and work; the agent around them is a model.

It dials, shows nothing, and is let in or refused; what it starts are processes of `processes`.
"""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING, Any

from nubes.drivers.local import payload, wire
from nubes.drivers.remote import messages
from nubes.drivers.remote.agent import AGAIN_S
from nubes.drivers.remote.listener import GREETING_S
from nubes.drivers.remote.work import Work
from nubes.drivers.sim.faults.loop import Lifetime, VirtualLoop
from nubes.drivers.sim.faults.network import Endpoint, Peer
from nubes.drivers.sim.faults.processes import Process, Processes
from nubes.drivers.sim.faults.watched import WatchedLife
from nubes.functions.spec import Code, FunctionSpec
from nubes.kernel.errors import UsageError
from nubes.kernel.rng import rng

if TYPE_CHECKING:
    from nubes.drivers.sim.faults.world import World


class Site:
    """What an agent's work finds on its machine. Of some functions the files are not there, and have to come."""

    segments = payload.Segments("")  # nothing is that large

    def __init__(self, machine: Machine, work: Work) -> None:
        self._machine = machine
        own = machine.loop.life
        self.hands = Processes(
            machine.world, machine, machine.loop, own, work.specs, work.report, work.frame,
            lambda: machine.life.line.other,
        )  # fmt: skip

    def has(self, spec: FunctionSpec) -> bool:
        return not spec.name or self._machine.r.random() >= self._machine.world.plan.far_files

    def unpack(self, spec: FunctionSpec, files: dict[str, bytes]) -> Code:
        if self._machine.r.random() < self._machine.world.plan.start_fails:
            raise UsageError("The disk is full.")
        return spec.code

    def lacks(self, around: messages.Surroundings) -> str:
        return ""

    def close(self) -> None:
        self.hands.close()


class Elsewhere:
    """A `Carrier` by which some payloads go another way, where they may be lost."""

    def __init__(self, world: World, r: random.Random) -> None:
        self._plan = world.plan
        self._r = r

    def pack(self, data: bytes, to: str) -> bytes:
        return b"R" + data if self._r.random() < self._plan.far_data else data

    def waits(self, data: bytes) -> bool:
        return data[:1] == b"R"

    def unpack(self, data: bytes, segments: payload.Segments) -> bytes:
        if data[:1] == b"R" and self._r.random() < self._plan.far_data_lost:
            raise ConnectionError("who had it is gone")
        return data.removeprefix(b"R")


class Machine:
    """`number` is 0 for the one that the control plane runs on, which has no agent."""

    def __init__(self, world: World, number: int, r: random.Random) -> None:
        self.world = world
        self.number = number
        self.name = f"machine {number}"
        self.r = r
        self.cpu = r.choice([1.0, 2.0, 8.0])
        self.memory_bytes = r.choice([512, 1024, 8192]) << 20
        self.processes: list[Processes] = []  # that have not ended
        self.agent = Lifetime(0)  # its process
        self.agent.over = True
        self.gone = False  # for good
        self.loop: VirtualLoop
        self.life: WatchedLife
        self.id = -1  # by which the control plane knows this life, if it does
        self.leaving = False

    @property
    def up(self) -> bool:
        """Whether an agent runs here, or stands still."""
        return not self.agent.over

    @property
    def instances(self) -> list[Process]:
        return [process for processes in self.processes for process in processes.instances.values()]

    @property
    def parents(self) -> list[int]:
        return [parent for processes in self.processes for parent in processes.parents]

    # -- the agent -----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The machine is there: its agent starts."""
        if not self.up and not self.gone:
            world = self.world
            self.agent = Lifetime(self.agent.number + 1)
            r = rng(world.seed, "agent", self.number, self.agent.number)
            self.loop = VirtualLoop(world.timeline, self.agent, r, world.work_s)
            self.leaving = False
            self._live()

    def leave(self) -> None:
        """The agent is asked to end."""
        self.leaving = True
        self.life.leave()

    def fail(self, silently: bool) -> None:
        """The agent, and all that it started, is gone."""
        self.agent.over = True
        for processes in list(self.processes):
            processes.close()
        if silently:
            self.world.network.vanished(self.agent)
        else:
            self.world.network.died(self.agent)

    def _again(self) -> None:
        if self.leaving:
            self._over(True)
        else:
            self._live()

    def _live(self) -> None:
        carrier = Elsewhere(self.world, self.r)
        incarnation = self.r.getrandbits(56) + 1
        self.id = -1
        loop: Any = self.loop
        self.life = WatchedLife(loop, incarnation, carrier, partial(Site, self), self._over)
        self.life.oracle = self.world.oracle
        self._dial(self.life)

    def _over(self, whole: bool) -> None:
        self.world.note(f"{self.name}:", "its agent ends" if whole or self.leaving else "its agent begins anew")
        if whole or self.leaving:
            self.fail(silently=False)
            self.world.timeline.after(self.r.random() * 6.0, self.begin)
        else:
            self.world.oracle.began_anew(self)
            self.loop.call_later(AGAIN_S, self._again)

    def _dial(self, life: WatchedLife) -> None:
        """Keeps a connection, as `Agent` does."""
        if life.ended:
            return
        end = None if life.line.connected else self.world.visited(self)
        if end is None:
            self.loop.call_later(AGAIN_S, self._dial, life)
        else:
            about = messages.About(
                life.incarnation, f"m{self.number}", self.cpu, self.memory_bytes, f"zone {self.number % 2}"
            )
            end.send(wire.pack(messages.JOIN, messages.encode(about)))
            Greeting(self, life, end)

    def greeted(self, life: WatchedLife, end: Endpoint, since_s: float, frame: list[Any], rest: bytes) -> None:
        """The control plane lets a life in, or not."""
        if frame[0] == messages.REFUSED:
            end.close()
            life.end(False)
        else:
            self.id = self.processes[-1].known_as = frame[1]
            life.connected(partial(Peer, self.loop, end), since_s)
            end.received(rest)

    def again(self, life: WatchedLife) -> None:
        self.loop.call_later(AGAIN_S, self._dial, life)


class Greeting:
    """A connection that was made, until it is known whether its life is let in: for so long, but not for ever."""

    def __init__(self, machine: Machine, life: WatchedLife, end: Endpoint) -> None:
        self._machine = machine
        self._life = life
        self._end = end
        self._since_s = machine.loop.time()
        self._said = b""
        self._done = False
        end.received, end.lost = self._received, self._over
        machine.loop.call_later(GREETING_S, self._over)

    def _received(self, data: bytes) -> None:
        self._said += data
        size = 4 + int.from_bytes(self._said[:4], "little")
        if self._life.ended:
            self._over()
        elif len(self._said) >= max(size, 5):
            frame, rest = wire.unbody(self._said[4:size]), self._said[size:]
            self._done = True
            self._machine.greeted(self._life, self._end, self._since_s, frame, rest)
            self._machine.again(self._life)

    def _over(self) -> None:
        if not self._done:
            self._done = True
            self._end.close()
            self._machine.again(self._life)
