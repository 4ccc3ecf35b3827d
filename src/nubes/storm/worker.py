"""A process that plays days of one app: `python -m nubes.storm.worker FILE`. It is asked on its input, line by line.

Each request is done by a fork, so that what a day leaves behind (modules, memory, threads) goes with it, and a day that
ends its process, or never ends, costs that fork alone.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
import sys
import traceback
from typing import Any

import msgspec

from nubes.cli.errors import UserError
from nubes.kernel.errors import NubesError
from nubes.kernel.policy import load as load_policies
from nubes.storm import day, loops, senses, shrink
from nubes.storm.messages import Answer, Days, Died, Played, Ready, Refused, Replayed, Request, Shrink, Shrunk
from nubes.storm.present import tasks_of_now
from nubes.storm.program import Program
from nubes.storm.spec import Schedule

LONGEST_DAY_S = 60


def main() -> None:
    """Loads the app, says so, and answers until its input ends."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    program = _load(sys.argv[1], answers)
    if program is None:
        return
    os.dup2(nowhere, 2)
    functions = tuple(spec.name for spec in program.specs)
    _send(answers, Ready(program.app, functions, program.scenarios, program.invariants))
    where = mmap.mmap(-1, 8)  # the day that a fork is at
    for line in sys.stdin.buffer:
        request = msgspec.json.decode(line, type=Request)
        pid = os.fork()
        if pid == 0:
            _answer(program, request, where, answers)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code:
            _send(answers, Died(struct.unpack("<q", where[:8])[0], _how(code)))


def _load(what: str, answers: Any) -> Program | None:
    senses.install(senses.Senses())
    try:
        load_policies()
        loops.install(tasks_of_now)
        return Program(what)
    except NubesError as error:
        _send(answers, Refused(type(error).__name__, error.message, error.hint))
    except UserError as error:
        _send(answers, Refused("UserError", "".join(traceback.format_exception(error.error)).rstrip(), ""))
    return None


def _answer(program: Program, request: Request, where: mmap.mmap, answers: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    def begin(number: int) -> None:
        where[:8] = struct.pack("<q", number)
        signal.setitimer(signal.ITIMER_REAL, LONGEST_DAY_S)

    answer: Answer
    if isinstance(request, Days):
        answer = days(program, request, begin)
    elif isinstance(request, Shrink):
        answer = shrunk(program, request.schedule, begin)
    else:
        begin(request.schedule.seed)
        answer = replayed(program, request.schedule)
    _send(answers, answer)


def _send(answers: Any, answer: Answer) -> None:
    answers.write(msgspec.json.encode(answer) + b"\n")


def days(program: Program, request: Days, begin: Any = lambda number: None) -> Played:
    """Plays a range of days. The scenario and the faults of each follow from its number alone."""
    failed: list[Schedule] = []
    faults = operations = 0
    for number in range(request.first, request.first + request.count):
        begin(number)
        scenario = program.scenarios[number % len(program.scenarios)]
        outcome = day.play(program, scenario, number, day.drawn(number))
        faults += len(outcome.faults)
        operations += outcome.operations
        if outcome.breaks:
            failed.append(Schedule(scenario, number, outcome.faults, outcome.breaks, outcome.message))
    return Played(request.count, faults, operations, tuple(failed))


def shrunk(program: Program, schedule: Schedule, begin: Any = lambda number: None) -> Shrunk:
    """The smallest schedule that breaks the same invariant, with what it says then."""
    played = 0

    def fails(one: Schedule) -> bool:
        nonlocal played
        played += 1
        begin(one.seed)
        return day.replay(program, one).breaks == schedule.breaks

    small = shrink.smallest(schedule, fails)
    outcome = day.replay(program, small)
    return Shrunk(msgspec.structs.replace(small, message=outcome.message), played)


def replayed(program: Program, schedule: Schedule) -> Replayed | Refused:
    """The day of a schedule, with its story."""
    if schedule.scenario not in program.scenarios:
        known = ", ".join(program.scenarios)
        return Refused("NotFound", f"The app has no scenario {schedule.scenario!r}.", f"There are: {known}.")
    return Replayed(day.replay(program, schedule, tell=True))


def _how(code: int) -> str:
    if code == -signal.SIGALRM:
        return f"it takes more than {LONGEST_DAY_S} s"
    return f"it is ended by {signal.Signals(-code).name}" if code < 0 else f"it exits with code {code}"


if __name__ == "__main__":
    main()
