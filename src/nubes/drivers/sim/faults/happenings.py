"""What befalls a simulated run: one method for each kind of fault in a plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nubes.drivers.sim.faults.pages import NEVER
from nubes.functions import events as e
from nubes.kernel.errors import AlreadyRunning
from nubes.kernel.log import Log

if TYPE_CHECKING:
    from nubes.drivers.sim.faults.world import World

FOLDER = Path("log")
NOTICED_S = 3.0  # how long a machine may not be heard of before it is given up


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
        world.timeline.stalled_until = 0.0
        plan.start_fails = plan.start_hangs = plan.call_fails = plan.call_hangs = 0.0
        plan.call_kills = plan.parent_dies = 0.0
        for machine in world.machines:
            self._return(machine.number)

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
        self.world.timeline.stalled_until = self.world.timeline.now + self.r.choice([0.05, 0.5, 4.0])

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
        ends = [end for end in self.world.network.open if end.link != "here"]
        if ends:
            end = self.r.choice(ends)
            self.world.note("FAULT:", f"the connection of {end.link} breaks")
            self.world.network.snap(end)

    def _cut_machine(self) -> None:
        """A machine is not to be reached for a while; if it takes too long, the control plane gives it up."""
        world = self.world
        others = [machine for machine in world.machines[1:] if machine.end is not None]
        if not others:
            return
        machine = self.r.choice(others)
        for_s = self.r.choice([0.5, 2.0, 10.0])
        world.network.cut_until[f"machine {machine.number}"] = world.timeline.now + for_s
        if for_s > NOTICED_S:
            world.timeline.at(world.timeline.now + NOTICED_S, self._given_up, machine.id, life=world.timeline.life)

    def _given_up(self, id: int) -> None:
        self.world.fleet.gone(id, "it was not heard of for too long")

    # -- machines ------------------------------------------------------------------------------------------------

    def _lost_machine(self) -> None:
        world = self.world
        others = [machine for machine in world.machines[1:] if machine.up]
        if others:
            machine = self.r.choice(others)
            world.note("FAULT:", f"machine {machine.number} loses its power")
            machine.up = False
            machine.clear()
            if machine.end is not None:
                world.network.snap(machine.end)
                machine.end = None
            world.timeline.after(self.r.random() * 6.0, self._return, machine.number)

    def _return(self, number: int) -> None:
        machine = self.world.machines[number]
        if not machine.up:
            machine.up = True
            self.world.look_for_work(machine)

    def _machine_to_go(self) -> None:
        world = self.world
        known = [machine for machine in world.machines[1:] if machine.end is not None]
        if known and world.up:
            machine = self.r.choice(known)
            world.loop.call_soon(world.plane.feed, e.MachineDraining(machine.id))
