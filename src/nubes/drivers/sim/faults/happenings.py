"""What befalls a simulated run: one method for each kind of fault in a plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nubes.drivers.sim.faults.pages import NEVER
from nubes.functions import events as e
from nubes.kernel.errors import AlreadyRunning
from nubes.kernel.log import Log

if TYPE_CHECKING:
    from nubes.drivers.sim.faults.machines import Machine
    from nubes.drivers.sim.faults.world import World

FOLDER = Path("log")


class Happenings:
    """The faults of a world, by the words that plans use for them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.r = world.r
        self.stopped = False
        self._kinds = {
            "kill": lambda: self._crash(False),
            "power cut": lambda: self._crash(True),
            "crash in a disk operation": self._crash_in_operation,
            "clean restart": self._restart,
            "full disk": self._full,
            "failed sync": self._failed_sync,
            "stall": self._stall,
            "clock": self._clock,
            "lost connection": self._lost_connection,
            "cut machine": self._cut_machine,
            "stopped agent": self._stopped_agent,
            "lost machine": self._lost_machine,
            "machine to go": self._machine_to_go,
            "rot": self._rot,
            "second start": self._second_start,
        }

    def happen(self, kind: str) -> None:
        if not self.stopped:
            self.world.note("FAULT:", kind)
            self._kinds[kind]()

    def stop(self) -> None:
        """From now on all goes well."""
        self.stopped = True
        world, plan = self.world, self.world.plan
        world.disk.mend()
        plan.start_fails = plan.start_hangs = plan.call_fails = plan.call_hangs = 0.0
        plan.call_kills = plan.parent_dies = plan.far_data_lost = 0.0
        for machine in world.machines[1:]:
            machine.begin()

    # -- the control plane ---------------------------------------------------------------------------------------

    def _crash(self, power: bool) -> None:
        if self.world.up:
            self.world.crash("at any moment", power)

    def _crash_in_operation(self) -> None:
        self.world.disk.crash_in = self.r.choice([0, 1, 2, 4, 8, 30])

    def _restart(self) -> None:
        if self.world.up:
            self.world.close()

    def _second_start(self) -> None:
        """Somebody starts another control plane on the same folder."""
        world = self.world
        if world.up:
            try:
                Log(FOLDER, world.plan.segment_bytes, world.disk)
            except AlreadyRunning:
                return
            world.oracle.say("two control planes hold one folder")

    def _stall(self) -> None:
        self.world.life.stall(self.world.timeline.now + self.r.choice([0.05, 0.5, 4.0, 12.0]))

    def _clock(self) -> None:
        self.world.clocks.set(self.r.choice([-7200.0, -30.0, -0.5, 0.5, 30.0, 7200.0]))

    # -- its disk ------------------------------------------------------------------------------------------------

    def _full(self) -> None:
        self.world.disk.room = self.r.choice([0, 10, 100, 1000])
        self.world.timeline.after(self.r.random() * 4.0, self._room)

    def _room(self) -> None:
        self.world.disk.room = NEVER

    def _failed_sync(self) -> None:
        self.world.disk.failing = self.r.choice([1, 1, 2, 4])

    def _rot(self) -> None:
        """A bit turns; it is read at the next start, which comes at once."""
        world = self.world
        if not world.up:
            return
        world.crash("before a bit turns", power=self.r.random() < 0.5)
        names = [
            name for name in sorted(world.disk.files) if name.endswith((".log", ".snap")) and world.disk.files[name].now
        ]
        if names:
            name = self.r.choice(names)
            world.note("FAULT:", f"a bit of {name} turns")
            world.disk.rot(name)
            # One damaged state is no loss: an older one is there, or the log from its beginning.
            others = [other for other in names if other != name]
            spare = any(other.endswith(".snap") for other in others) or f"{0:016d}.log" in others
            world.rot_costs |= world.disk.rotten > 1 or name.endswith(".log") or not spare

    # -- the network ---------------------------------------------------------------------------------------------

    def _lost_connection(self) -> None:
        ends = list(self.world.network.open)
        if ends:
            end = self.r.choice(ends)
            self.world.note("FAULT:", f"the connection {end.way} breaks")
            self.world.network.snap(end)

    def _cut_machine(self) -> None:
        """Nothing gets to a machine, or from it, for a while, and then what was sent does."""
        world = self.world
        others = world.machines[1:]
        if others:
            name = self.r.choice(others).name
            ways = self.r.choice([(f"from {name}", f"to {name}")] * 3 + [(f"from {name}",), (f"to {name}",)])
            until_s = world.timeline.now + self.r.choice([0.5, 2.0, 8.0, 15.0])
            world.note("FAULT:", f"nothing gets {' or '.join(ways)} until {until_s:.4f}")
            for way in ways:
                world.network.cut_until[way] = max(until_s, world.network.cut_until.get(way, 0.0))

    # -- machines ------------------------------------------------------------------------------------------------

    def _chosen(self) -> Machine | None:
        up = [machine for machine in self.world.machines[1:] if machine.up]
        return self.r.choice(up) if up else None

    def _stopped_agent(self) -> None:
        """An agent, and all that it started, stands still for a while."""
        machine = self._chosen()
        if machine is not None:
            until_s = self.world.timeline.now + self.r.choice([0.5, 2.0, 8.0, 15.0])
            self.world.note("FAULT:", f"{machine.name} stands still until {until_s:.4f}")
            machine.agent.stall(until_s)

    def _lost_machine(self) -> None:
        """A machine loses its power, or only its agent dies: then others may see that their connections end."""
        machine = self._chosen()
        if machine is not None:
            self.world.note("FAULT:", f"{machine.name} is lost")
            machine.fail(silently=self.r.random() < 0.5)
            machine.gone = self.r.random() < 0.2
            self.world.timeline.after(self.r.choice([1.0, 6.0, 15.0]) * self.r.random(), machine.begin)

    def _machine_to_go(self) -> None:
        """By its own wish, or somebody has it drained, and perhaps changes their mind."""
        world, machine = self.world, self._chosen()
        if machine is None:
            return
        if self.r.random() < 0.5:
            self.world.note("FAULT:", f"{machine.name} leaves")
            world.timeline.at(world.timeline.now, machine.leave, life=machine.agent)
        elif world.up and machine.id in world.plane.controller.machines:
            self.world.note("FAULT:", f"{machine.name} is drained")
            world.loop.call_soon(world.plane.feed, e.MachineDraining(machine.id))
            if self.r.random() < 0.5:
                world.loop.call_later(self.r.random() * 4.0, self._undrained, machine.id)

    def _undrained(self, id: int) -> None:
        plane, member = self.world.plane, self.world.agents.members.get(id)
        m = plane.controller.machines.get(id)
        if m is not None and not (member and member.leaving):
            plane.feed(e.MachineReady(m.cpu, int(m.memory_bytes), m.id, m.zone))
