"""A schedule played for real, within the processes themselves: each counts its operations, and does at each point what
the schedule says. Instances are told of it by the environment variable NUBES_STORM.
"""

from __future__ import annotations

import inspect
import mmap
import os
import random
import signal
import struct
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from nubes import ids
from nubes.client.connection import Connection
from nubes.drivers.local import loading, printed
from nubes.functions.spec import Code
from nubes.storm import counting, senses
from nubes.storm.attempts import Attempt, chance_of
from nubes.storm.counting import attempt
from nubes.storm.spec import CLOCK, DELAY, KILL, MACHINE, RESTART, Fault, Schedule, call_id, child
from nubes.storm.turns import Place, Turns

if TYPE_CHECKING:
    from nubes.drivers.local.instance import Instance

VARIABLE = "NUBES_STORM"  # the folder of the performance

_clock = struct.Struct("<d")
_new_id = ids.new


class Stage:
    """One performance, as each of its processes sees it. `folder` is shared by them all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.schedule = msgspec.json.decode((folder / "schedule.json").read_bytes(), type=Schedule)
        self.turns = Turns(folder)
        self.faults = {(call_id(f.call), f.function, f.attempt, f.after): f for f in self.schedule.faults}
        with open(folder / "clock", "r+b") as file:
            self.clock = mmap.mmap(file.fileno(), _clock.size)

    @staticmethod
    def prepare(folder: Path, schedule: Schedule, order: tuple[Place, ...]) -> None:
        """Lays out what the processes share."""
        (folder / "attempts").mkdir(parents=True)
        Turns.prepare(folder, order)
        (folder / "schedule.json").write_bytes(msgspec.json.encode(schedule))
        (folder / "clock").write_bytes(_clock.pack(0.0))
        (folder / "fired").touch()

    def begin(self, call: int, function: str) -> Attempt:
        """An attempt of a call begins here."""
        with open(self.folder / "attempts" / str(call), "ab") as file:
            file.write(b".")
            file.flush()
            number = os.fstat(file.fileno()).st_size
        made = Attempt(call, "", function, number)
        attempt.set(made)
        self.turns.wait(made, 0)
        self.point(made)
        return made

    def turn(self) -> None:
        """Waits for the turn of the next operation of the attempt that runs here."""
        mine = attempt.get()
        if mine is not None:
            self.turns.wait(mine, mine.after + 1)

    def done(self) -> None:
        """One more operation of the attempt that runs here is done."""
        mine = attempt.get()
        if mine is not None:
            mine.after += 1
            self.point(mine)

    def point(self, mine: Attempt) -> None:
        self.turns.done(mine)
        fault = self.faults.get((mine.id, mine.function, mine.number, mine.after))
        if fault is not None:
            self._fire(fault, mine)

    def _fire(self, fault: Fault, mine: Attempt) -> None:
        with open(self.folder / "fired", "ab") as file:
            file.write(msgspec.json.encode(fault) + b"\n")
        if fault.kind == KILL and mine.id:
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault.kind == DELAY:
            senses.real_sleep(fault.seconds)
        elif fault.kind == CLOCK:
            self.clock[:] = _clock.pack(self.stepped_s + fault.seconds)
        elif fault.kind == MACHINE and mine.id:
            for pid in self._instances():
                if pid != os.getpid():
                    _end(pid)
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault.kind == RESTART:
            _end(int((self.folder / "plane").read_text()))
            while mine.id:
                signal.pause()  # what hangs on the control plane ends with it

    def _instances(self) -> list[int]:
        """The processes of all instances there are: this machine's."""
        connection = Connection(os.environ["NUBES_SOCKET"])
        pids = [int(one["pid"]) for one in connection.ask("status", {})["instances"]]
        connection.close()
        return [pid for pid in pids if pid]

    @property
    def stepped_s(self) -> float:
        return float(_clock.unpack(self.clock[:])[0])


def _end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


class _Lived(senses.Senses):
    """The wall clock as the schedule sets it, and chance as the simulation had it."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def wall(self) -> float | None:
        return senses.real_time() + self._stage.stepped_s

    def chance(self) -> random.Random | None:
        mine = attempt.get()
        return None if mine is None else chance_of(self._stage.schedule.seed, mine)


def _numbered() -> int:
    """A new id: of a call, the one that the simulation gave it."""
    mine = attempt.get()
    if mine is None:
        return _new_id()
    mine.calls += 1
    return child(mine.id, mine.number, mine.calls)


def install(folder: Path) -> Stage:
    """From here on this process is one of the performance's."""
    stage = Stage(folder)
    counting.install(stage)
    ids.new = _numbered
    senses.install(_Lived(stage))
    return stage


def enter(me: Instance) -> Callable[[Code], Any]:
    """In an instance, before it loads its function: what loads it, with all its calls counted."""
    stage = install(Path(os.environ[VARIABLE]))
    plain = me.method
    name = me.spec.name.partition("/")[2]

    def method(of: str) -> tuple[Any, bool]:
        function, is_async = plain(of)
        return _around(stage, function, name), is_async

    me.method = method  # type: ignore[method-assign, assignment]

    def load(code: Code) -> Any:
        target = loading.load(code)
        module = sys.modules.get(getattr(loading.raw(target), "__module__", ""))
        if module is not None:
            senses.dress(module)
        return target

    return load


def _around(stage: Stage, function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The function as one whose attempts begin and end in a performance."""

    def run(*args: Any, **kwargs: Any) -> Any:
        stage.begin(printed.call.get(), name)
        try:
            result = function(*args, **kwargs)
        except BaseException:
            stage.done()
            raise
        if inspect.iscoroutine(result):
            return _awaited(stage, result)
        if inspect.isasyncgen(result):
            return _each_awaited(stage, result)
        if inspect.isgenerator(result):
            return _each(stage, result)
        stage.turn()
        stage.done()
        return result

    return run


async def _awaited(stage: Stage, work: Coroutine[Any, Any, Any]) -> Any:
    try:
        return await work
    finally:
        stage.done()


async def _each_awaited(stage: Stage, items: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for item in items:
        yield item
    stage.done()


def _each(stage: Stage, items: Any) -> Generator[Any, None, Any]:
    yield from items
    stage.done()
