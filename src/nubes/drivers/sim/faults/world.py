"""One simulated run: a control plane with its log, disk, network, clients and machines, and all that befalls them.

The control plane, its journal, its log, the sessions of its clients, its controller, its links to agents and what those
do are the real ones. Everything they stand on is simulated, in virtual time, in one thread, from one seed: the same
seed gives the same story anywhere.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from nubes.drivers.local.journal import Journal
from nubes.drivers.local.state import State
from nubes.drivers.remote.messages import LOST_S
from nubes.drivers.sim.faults import plan as plans
from nubes.drivers.sim.faults.clients import Client
from nubes.drivers.sim.faults.disk import Crash, SimDisk
from nubes.drivers.sim.faults.fleet import hands, visited
from nubes.drivers.sim.faults.happenings import FOLDER, Happenings
from nubes.drivers.sim.faults.invariants import END, EVENT, INVARIANTS, ORPHANED_S, RECOVERY, disagreements
from nubes.drivers.sim.faults.loop import Clocks, Lifetime, Timeline, VirtualLoop
from nubes.drivers.sim.faults.machines import Machine
from nubes.drivers.sim.faults.network import Endpoint, Network
from nubes.drivers.sim.faults.oracle import Oracle
from nubes.drivers.sim.faults.sessions import SimSession
from nubes.drivers.sim.faults.watched import WatchedAgents, WatchedLog, WatchedPlane
from nubes.functions import events as e
from nubes.functions.spec import FunctionSpec
from nubes.kernel.clock import WallClock
from nubes.kernel.errors import LogCorrupt, Unavailable
from nubes.kernel.message import Codec
from nubes.kernel.rng import rng

decode = Codec(e.EVENTS).decode
MOST_EVENTS = 60_000
SETTLE_S = LOST_S + 5.0  # what is lost is given up by then, and what is gone is gone
PATIENCE_S = 2000.0  # how long, once faults have stopped, everything may take to be answered


class Failure(Exception):
    """Something that must hold does not."""


class World:
    """`run` raises `Failure` if something does not hold. `tell` gets each line of the story."""

    def __init__(self, seed: int, plan: plans.Plan | None = None, tell: Callable[[str], None] | None = None) -> None:
        self.seed = seed
        self.tell = tell
        self.plan = plan or plans.draw(rng(seed, "plan"))
        self.events = 0
        self.digest = 0
        self.timeline = Timeline()
        self.clocks = Clocks(self.timeline)
        self.disk = SimDisk(rng(seed, "disk"), self._disk_does if tell else None)
        self.disk.short, self.disk.forgetful = self.plan.short_writes, self.plan.forgetful
        self.oracle = Oracle(self)
        self.r = r = rng(seed, "world")
        delay_s, sync_s = self.plan.delay_s, self.plan.sync_s
        self.near_s: Callable[[], float] = lambda: r.expovariate(1.0) * delay_s if delay_s else 0.0
        self.network = Network(self.timeline, r, self.near_s)
        self.work_s: Callable[[], float] = lambda: r.expovariate(1.0) * sync_s if sync_s else 0.0
        self.specs: dict[str, FunctionSpec] = {spec.name: spec for spec in plans.functions(rng(seed, "app"))}
        self.clients = [Client(self, n + 1, rng(seed, "client", n)) for n in range(self.plan.clients)]
        self.machines = [Machine(self, n, rng(seed, "machine", n)) for n in range(self.plan.machines + 1)]
        self.life = Lifetime(0)  # of the control plane
        self.owners = 0
        self.up = False
        self.left: set[tuple[str, str, int, int]] = set()  # what the control plane and its machines disagree on
        self.last_now = 0.0
        self.recovered_at = 0.0, 0.0  # by the control plane's clock, and by the world's
        self.expected = 0  # records that the last crash must have left
        self.lost_to_rot = False
        self.rot_costs = False  # a bit turned in the only copy of something
        self.recoveries = 0
        self.last_record = 0  # the newest that was fed
        self.finishing = False
        self.plane: WatchedPlane
        self.agents: WatchedAgents
        self.loop: VirtualLoop
        self.happenings = Happenings(self)

    # -- story ---------------------------------------------------------------------------------------------------

    def note(self, what: str, about: Any = "", frame: bytes = b"") -> None:
        """A line of the story; `frame` is part of what makes two stories the same."""
        if frame:
            self.digest = zlib.crc32(frame, self.digest)
        if self.tell is not None:
            self.tell(f"{self.timeline.now:10.4f}  {what} {about}")

    def _disk_does(self, what: str) -> None:
        self.note("disk:", what)

    def say(self, text: str) -> None:
        self.note("the control plane says:", text)

    # -- life of the control plane -------------------------------------------------------------------------------

    def boot(self) -> None:
        """Starts the control plane on what is on the disk."""
        self.life = Lifetime(self.life.number + 1)
        self.loop = VirtualLoop(self.timeline, self.life, rng(self.seed, "loop", self.life.number), self.work_s)
        plan, oracle = self.plan, self.oracle
        try:
            log = WatchedLog(FOLDER, plan.segment_bytes, self.disk)
        except Unavailable as error:
            self.note("no start:", error.message)
            self.disk.killed()
            self.timeline.after(0.2, self.boot)
            return
        except LogCorrupt as error:
            self.note("no start:", error.message)
            if not self.rot_costs:
                raise Failure(f"the log cannot be read, though no only copy rotted: {error}") from None
            self._begin_anew()
            return
        self.lost_to_rot = log.count < self.expected
        if self.lost_to_rot and not self.rot_costs:
            raise Failure(f"{self.expected} records were safe, {log.count} are left: {log.findings}")
        oracle.forget(log.count)
        log.lineage = oracle.lineage
        state: Any = State(log, None, None, "the folder", "")  # type: ignore[arg-type]
        journal = Journal(state, self.say, lambda *_: 0, plan.snapshot_records, plan.keep_log_bytes)
        self.plane = plane = WatchedPlane(journal)
        plane.world, plane.clients = self, Counter()
        loop: Any = self.loop
        plane.recover(loop, lambda floor: WallClock(floor, self.clocks.wall, self.clocks.steady))
        self.recoveries += 1
        self.note("recovered", f"{log.count} records, from the state of {log.snapshot_at}; {log.findings}")
        if self.lost_to_rot:
            self.check(RECOVERY, "damage is noticed")
            oracle.excuse()
        self.last_now = decode(oracle.lineage[-1])[0] if oracle.lineage else 0.0
        self.recovered_at = self.last_now, self.timeline.now
        self.check(RECOVERY)
        fresh = not log.count
        here = self.machines[0]
        self.agents = hands(self)
        plane.begin(self.agents, plan.policies, e.MachineReady(here.cpu, here.memory_bytes))
        plane.observe(e.Resolve, lambda command: oracle.resolves(command.call, log.count - 1))
        plane.observe(e.StopInstance, lambda command: oracle.given_up(command.instance))
        plane.observe(e.Interrupt, lambda command: oracle.interrupted(command.instance, command.call))
        if fresh or "a" not in plane.controller.apps:
            plane.feed(e.Deployed("a", 1, tuple(self.specs.values())))
        else:
            self.specs = dict(plane.controller.specs)
        self.up = True

    def _begin_anew(self) -> None:
        """The log is lost, and that was said: an empty disk takes the place of the other."""
        self.disk.files.clear()
        self.disk.stable.clear()
        self.disk.renames.clear()
        self.disk.killed()
        self.disk.changes += 1
        self.oracle.forget(0)
        self.oracle.excuse()
        self.expected = 0
        self.timeline.after(0.2, self.boot)

    def crash(self, why: str, power: bool) -> None:
        """The control plane's process is gone; with `power`, what was not safe too."""
        self.note("CRASH:", f"{why}, {'power cut' if power else 'killed'}")
        self.expected = max(self.oracle.safe(), 0 if self.up else self.expected)
        self.up = False
        self.life.over = True
        if power:
            self.disk.power_cut()
        else:
            self.disk.killed()
        for processes in list(self.machines[0].processes):
            processes.close()
        self.network.died(self.life)
        self.timeline.after(self.plan.down_s * self.r.random(), self.boot)

    def close(self) -> None:
        """The control plane is stopped as it should be."""
        self.note("stop:", "the control plane is asked to end")
        self.plane.journal.close()
        self.plane.journal.let_go()
        self.crash("it ended in order", power=False)

    # -- who comes -----------------------------------------------------------------------------------------------

    def accept(self, client: Client) -> Endpoint | None:
        """A client connects, if there is somebody."""
        if not self.up:
            return None
        self.owners += 1
        near, far = self.network.connect(f"client {client.number}", None, self.life)
        SimSession(self, far, self.owners)
        return near

    def visited(self, machine: Machine) -> Endpoint | None:
        """An agent connects, if there is somebody."""
        return visited(self, machine)

    def new_functions(self) -> tuple[FunctionSpec, ...]:
        """The app once more, its functions of other kinds, but of the same sizes."""
        r = self.r
        new = (plans.function(r, spec.name, spec.cpu, spec.memory_bytes) for spec in self.specs.values())
        self.specs = {spec.name: msgspec.structs.replace(spec) for spec in new}
        return tuple(self.specs.values())

    # -- running -------------------------------------------------------------------------------------------------

    def run(self) -> World:
        """Everything, from the first start to the last answer."""
        self.timeline.at(0.0, self.boot)
        for machine in self.machines[1:]:
            self.timeline.after(self.r.random() * 2.0, machine.begin)
        for client in self.clients:
            self.timeline.after(self.r.random() * 0.5, client.think)
        for at, kind in self.plan.faults:
            self.timeline.at(at, self.happenings.happen, kind)
        self.timeline.at(self.plan.length_s, self.finish)
        self._until(lambda: self.finishing and self._answered())
        self._settle()
        self.crash("one last time", power=True)
        for client in self.clients:
            client.ask_again()
        self._until(self._answered)
        self._settle()
        return self

    def _answered(self) -> bool:
        return self.up and all(client.done() for client in self.clients)

    def _settle(self) -> None:
        """Who is gone is noticed, then all must be in order."""
        standing = [self.life.stalled_until, *(machine.agent.stalled_until for machine in self.machines)]
        until_s = max(self.timeline.now, *standing, *self.network.cut_until.values()) + SETTLE_S
        self._until_s(until_s - ORPHANED_S)
        self.left = disagreements(self)
        while self.timeline.now < until_s:
            self._until_s(self.timeline.now + ORPHANED_S / 20)
            self.left &= disagreements(self)
        self.check(END)

    def _until_s(self, until_s: float) -> None:
        self.timeline.at(until_s, lambda: None)
        self._until(lambda: self.timeline.now >= until_s)

    def finish(self) -> None:
        """Faults stop, clients begin nothing new, and want the answers of what they have begun."""
        self.note("no more faults:", "everything is to be answered from here on")
        self.finishing = True
        self.happenings.stop()
        for client in self.clients:
            client.finishing = True

    def _until(self, done: Callable[[], bool]) -> None:
        end_s = self.timeline.now + self.plan.length_s + PATIENCE_S
        while not done() and self.timeline.now < end_s:
            self.events += 1
            if self.events > MOST_EVENTS:
                raise Failure(f"{MOST_EVENTS} events, and no end")
            following = self.timeline.next()
            if following is None:
                return
            action, args = following
            before = self.plane.fed if self.up else 0
            try:
                action(*args)
            except Crash:
                self.crash("in the middle of a disk operation", power=self.r.random() < 0.5)
            if self.up and self.plane.fed != before:
                self.check(EVENT)
            elif self.oracle.wrong:
                raise Failure("; ".join(self.oracle.wrong))

    def check(self, when: str, only: str = "") -> None:
        for invariant in INVARIANTS:
            if invariant.when == when and only in ("", invariant.name):
                for wrong in invariant.check(self):
                    raise Failure(f"{invariant.name}: {wrong}")
