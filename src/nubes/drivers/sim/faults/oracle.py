"""What was promised and what was seen, kept outside of everything that may crash: the invariants look here."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from nubes.drivers.remote.messages import LOST_S
from nubes.functions.choosing import MOST_AHEAD
from nubes.functions.spec import FunctionSpec
from nubes.kernel.frames import SEGMENT, frames

if TYPE_CHECKING:
    from nubes.drivers.sim.faults.machines import Machine
    from nubes.drivers.sim.faults.processes import Process
    from nubes.drivers.sim.faults.world import World

Answer = tuple[str, str, bytes]  # status, reason, output


class Run:
    """One execution of a call. It need not be the last if its instance was given up, it failed, or was withdrawn."""

    __slots__ = ("call", "instance", "life", "number", "ok")

    def __init__(self, number: int, call: int, life: int, instance: int) -> None:
        self.number = number
        self.call = call
        self.life = life
        self.instance = instance
        self.ok: bool | None = None


class Oracle:
    """`wrong` collects what should not have been seen, in sentences."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.wrong: list[str] = []
        self.lineage: list[bytes] = []  # all records there should be, as far as they were not lost with a crash
        self.submitted: dict[int, int] = {}  # call -> its record
        self.resolved: dict[int, int] = {}  # call -> the record that ended it
        self.deployed: dict[int, int] = {}  # version -> its record
        self.about: dict[int, tuple[str, str, bool]] = {}  # call -> function, key, durable
        self.accepted: dict[int, float] = {}  # durable calls that a client was told are kept -> when
        self.answers: dict[int, Answer] = {}  # answers of durable calls that a client was told
        self.version = 0  # the newest deployment that a client was told is kept
        self.cancelled: set[int] = set()
        self.refused: set[int] = set()
        self.runs: dict[tuple[str, ...], list[Run]] = {}
        self.given: set[tuple[int, int]] = set()  # (life, instance) that the control plane has given up
        self.count = 0
        self._heard: set[tuple[int, int]] = set()  # (instance, call) whose answer has come, and is not counted yet
        self._ways: dict[tuple[int, ...], deque[tuple[float, bytes]]] = {}  # messages between lives, until they came
        self._plain: dict[int, int] = {}  # plain calls that were answered -> how often
        self._safe = 0
        self._safe_at = -1
        self._read: dict[str, tuple[bytes, int, int]] = {}  # segment -> its bytes, records, and where they end

    def say(self, wrong: str) -> None:
        self.wrong.append(wrong)

    # -- what is safe --------------------------------------------------------------------------------------------

    def safe(self) -> int:
        """How many records the worst power cut leaves."""
        disk = self.world.disk
        if self._safe_at != disk.changes:
            self._safe_at = disk.changes
            states = disk.safe(".snap")
            count = int(states[-1][0].partition(".")[0]) if states else 0
            for name, raw in disk.safe(".log"):
                first = int(name.partition(".")[0])
                if first <= count:
                    count = max(count, first + self._records(name, raw))
            self._safe = count
        return self._safe

    def _records(self, name: str, raw: bytes) -> int:
        """How many records a segment holds. Only what is new in it is read."""
        before, count, end = self._read.get(name, (b"", 0, len(SEGMENT)))
        if not raw.startswith(before):
            before, count, end = b"", 0, len(SEGMENT)
        if len(raw) > len(before):
            ahead = end - len(SEGMENT)
            for _, offset in frames(SEGMENT + raw[end:] if raw.startswith(SEGMENT) else b""):
                count += 1
                end = offset + ahead
            self._read[name] = raw, count, end
        return count

    # -- what clients are told -----------------------------------------------------------------------------------

    def told_accepted(self, call: int) -> None:
        record = self.submitted.get(call)
        if record is None or record >= self.safe():
            self.say(f"call {call} was called accepted, but a power cut would lose it ({record}, safe: {self.safe()})")
        self.accepted.setdefault(call, self.world.timeline.now)

    def told_deployed(self, version: int) -> None:
        if self.deployed.get(version, 1 << 60) >= self.safe():
            self.say(f"version {version} was called deployed, but a power cut would lose it")
        self.version = max(self.version, version)

    def told_answer(self, call: int, status: str, reason: str, output: bytes) -> None:
        controller = self.world.plane.controller
        function, key, durable = self.about.get(call, ("", "", False))
        if status == "SUCCEEDED" and not output:
            self.say(f"call {call} was answered with nothing")
        if reason.startswith("No call of this id"):
            if call in self.accepted:
                self.say(f"call {call} was accepted, and is not known any more")
        elif reason.startswith(("unavailable: ", "overloaded: ")):
            self.refused.add(call)
            if call in self.accepted:
                self.say(f"call {call} was accepted, then refused: {reason}")
            if call in controller.calls:
                self.say(f"call {call} was refused, but goes on")
        elif call in controller.results:
            self._keep(call, call, (status, reason, output))
        elif durable and status != "FAILED":
            self.say(f"durable call {call} was answered {status}, and nothing is kept of it")
        else:
            first = controller.keys.get((function, key), 0)
            at = self.submitted.get(call)
            if (
                first in controller.results and at is not None and self.resolved.get(call) == at
            ):  # it shares the answer of a durable call
                self._keep(first, call, (status, reason, output))
            self._plain[call] = self._plain.get(call, 0) + 1
            if self._plain[call] > 1:
                self.say(f"call {call} was answered {self._plain[call]} times")

    def _keep(self, call: int, asked: int, answer: Answer) -> None:
        record = self.resolved.get(call)
        if record is None or record >= self.safe():
            self.say(f"the answer of call {call} was told (to {asked}), but a power cut would lose it")
        before = self.answers.setdefault(call, answer)
        if before != answer:
            self.say(f"call {call} was answered {before}, and now {answer}")

    # -- what machines see ---------------------------------------------------------------------------------------

    def started(self, machine: Machine, process: Process) -> None:
        here = [p for p in machine.instances if not p.ending]
        if sum(p.spec.memory_bytes for p in here) > machine.memory_bytes:
            self.say(f"machine {machine.number} has no memory for instance {process.id}")
        self.loaded(machine, process)

    def loaded(self, machine: Machine, process: Process) -> None:
        if len(process.calls) > room(process.spec):
            self.say(f"instance {process.id} runs {sorted(process.calls)}, and has room for {room(process.spec)}")
        busy = [p for p in machine.instances if not p.ending and (p.calls or not p.ready)]
        if sum(p.spec.cpu for p in busy) > machine.cpu:
            self.say(f"machine {machine.number} has {machine.cpu} CPU, but {len(busy)} instances at work")

    def began(self, process: Process, call: int, data: bytes) -> int:
        """A call is run; returns the number of this execution."""
        self.count += 1
        if not process.ready or process.ending or call in process.calls:
            self.say(f"call {call} was given to instance {process.id}, which is not ready, or has it already")
        function = self.about.get(call, ("", "", False))[0]
        first = process.spec.name == function  # else the call was handed on to another
        if function and not data.startswith(b"Pinput of %d" % call if first else b"Pof call %d," % call):
            self.say(f"call {call} was given {data!r} for its input by {process.spec.name}")
        work = self._work(call, process)
        runs = self.runs.setdefault(work, [])
        life = process.life
        for run in runs if (life, process.id) not in self.given else ():
            plain = not self.about.get(run.call, ("", "", True))[2]
            over = run.ok is False or (plain and run.call in self.resolved)  # nothing is kept of it
            may_be_another = run.life != life or over or run.call in self.refused
            if not may_be_another and (life, run.instance) not in self.given:
                self.say(f"call {call} is run by instance {process.id}, though instance {run.instance} did or does it")
        runs.append(Run(self.count, call, life, process.id))
        return self.count

    def answered(self, process: Process, call: int, number: int, ok: bool) -> None:
        for run in self.runs.get(self._work(call, process), ()):
            if run.number == number:
                run.ok = ok

    def _work(self, call: int, process: Process) -> tuple[str, ...]:
        """What is to be done once: the steps of calls with a key are the same if the keys are."""
        function, key, _ = self.about.get(call, ("", "", False))
        step = process.spec.name
        return ("key", function, key, step) if key else ("call", str(call), step)

    def interrupted(self, instance: int, call: int) -> None:
        for runs in self.runs.values():
            for run in runs:
                if run.instance == instance and run.life == self.world.life.number and run.ok is None:
                    run.ok = False

    def answer_came(self, instance: int, call: int) -> None:
        """From another machine. What it answered may take a while yet."""
        self._heard.add((instance, call))

    def instance_lost(self, instance: int, reason: str) -> None:
        """Whatever it answered before counts, if it could be had."""
        unheard = [call for one, call in self._heard if one == instance]
        if unheard and not reason.startswith("what it answered could not be had"):
            self.say(f"instance {instance} is lost ({reason}), though its answers to {unheard} had come")
        self.given_up(instance)

    def given_up(self, instance: int) -> None:
        self._heard = {one for one in self._heard if one[0] != instance}
        self.given.add((self.world.life.number, instance))

    def machine_given_up(self, id: int, reason: str) -> None:
        """With all that is on it: by then its agent has ended that, unless it stood still itself."""
        known = self.world.plane.controller.machines.get(id)
        for instance in known.instances if known is not None else ():
            self.given_up(instance)
        for machine in self.world.machines[1:]:
            stood_still = machine.agent.stalled_until > self.world.timeline.now - LOST_S
            for processes in machine.processes:
                started = [p for p in processes.instances.values() if p.life == self.world.life.number]
                left = [p.id for p in started if processes.known_as == id and not p.ending]
                if left and not stood_still:
                    self.say(f"{machine.name} was given up ({reason}), and goes on with instances {left}")

    def machine_joins(self) -> None:
        names = [member.about.name for member in self.world.agents.members.values()]
        if len(set(names)) < len(names):
            self.say(f"one machine counts as two: {names}")

    def began_anew(self, machine: Machine) -> None:
        """An agent gave up all it had. What is short is no reason for that, nor that a connection broke."""
        world = self.world
        cuts = [world.network.cut_until.get(f"{way} {machine.name}", 0.0) for way in ("from", "to")]
        disturbed_s = max(*cuts, machine.agent.stalled_until, world.life.stalled_until, world.recovered_at[1])
        if world.up and world.plan.delay_s < 0.1 and world.timeline.now - disturbed_s > LOST_S:
            self.say(f"the agent of {machine.name} began anew, though it was not disturbed since {disturbed_s:.3f}")

    # -- what control planes and agents tell each other ----------------------------------------------------------

    def sent(self, way: tuple[int, ...], message: bytes) -> None:
        self._ways.setdefault(way, deque()).append((self.world.timeline.now, message))

    def got(self, way: tuple[int, ...], message: bytes) -> None:
        line = self._ways.get(way)
        if not line or line[0][1] != message:
            self.say(f"a message came that is not the next that was sent ({way}): {message!r}")
        else:
            line.popleft()

    def overdue(self, way: tuple[int, ...], before_s: float) -> int:
        """How many messages sent before a time have not come."""
        return sum(sent_s < before_s for sent_s, _ in self._ways.get(way, ()))

    # -- what the control plane does -----------------------------------------------------------------------------

    def feeds(self, event: Any, record: int) -> None:
        kind = type(event).__name__
        if kind == "Submitted":
            self.submitted[event.call] = record
            self.about[event.call] = (event.function, event.key, event.keep)
        elif kind == "Finished":
            self._heard.discard((event.instance, event.call))
        elif kind == "Deployed":
            self.deployed[event.version] = record

    def resolves(self, call: int, record: int) -> None:
        if call in self.resolved:
            self.say(f"call {call} was resolved twice")
        self.resolved[call] = record

    def forget(self, count: int) -> None:
        """A crash left so many records. What was behind them never was."""
        self._heard.clear()
        del self.lineage[count:]
        for table in (self.submitted, self.resolved, self.deployed):
            for key in [key for key, record in table.items() if record >= count]:
                del table[key]

    def excuse(self) -> None:
        """A disk has lost what it had promised, and it was noticed: nothing that was promised before counts."""
        self.accepted.clear()
        self.answers.clear()
        self.version = 0


def room(spec: FunctionSpec) -> int:
    """Calls that an instance may have at once."""
    if spec.batching is not None:
        return spec.batching.max_batch_size
    return spec.concurrency if spec.concurrency > 1 else 1 if spec.single_use else MOST_AHEAD
