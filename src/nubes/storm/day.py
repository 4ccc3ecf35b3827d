"""A day from its beginning to its end: the scenario, faults, rest, and what has to hold then."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from typing import Any

from nubes.app import App
from nubes.kernel.rng import rng
from nubes.storm import loops
from nubes.storm.attempts import Attempt
from nubes.storm.program import Program
from nubes.storm.spec import CLOCK, DELAY, DELAYS_S, KILL, KINDS, MACHINE, REST, STEPS_S, Fault, Outcome, Schedule
from nubes.storm.tasks import Endless, Home
from nubes.storm.world import EPOCH_S, SCENARIO_OWNER, Points, World

LONGEST_S = 3 * 86_400.0  # when a day that has not come to rest is taken never to
MOST_FAULTS, MOST_KINDS = 5, 3  # of one day
_RATES = (0.5, 0.2, 0.1, 0.03)  # of points that have a fault


def drawn(seed: int) -> Points:
    """Faults by chance: each day has its own few kinds, rate and number of them. Day 0 has none."""
    chance = rng(seed, "storm")
    kinds = chance.sample(KINDS, chance.randint(1, MOST_KINDS))
    rate = chance.choice(_RATES)
    left = chance.randint(1, MOST_FAULTS) if seed else 0

    def at(attempt: Attempt) -> Fault | None:
        nonlocal left
        if not left or chance.random() >= rate:
            return None
        kind = chance.choice(kinds)
        if not attempt.call and kind in (KILL, MACHINE):
            return None
        left -= 1
        seconds = chance.choice(DELAYS_S) if kind == DELAY else chance.choice(STEPS_S) if kind == CLOCK else 0.0
        return Fault(kind, attempt.call, attempt.function, attempt.number, attempt.after, seconds)

    return at


def given(faults: tuple[Fault, ...]) -> Points:
    """The faults of a schedule."""
    at = {fault.point: fault for fault in faults}
    return lambda attempt: at.get(attempt.point)


def play(program: Program, scenario: str, seed: int, points: Points, tell: bool = False) -> Outcome:
    """Runs a day, and says how it ended. The same arguments give the same outcome."""
    story: list[tuple[float, int, str]] = []
    world = World(program, seed, points, (lambda *line: story.append(line)) if tell else None)
    try:
        breaks, message, stopped = _day(world, scenario)
    finally:
        world.close()
    took = world.tasks.now - EPOCH_S
    order = tuple(world.order) if tell else ()
    return Outcome(tuple(world.fired), breaks, message, stopped, took, world.operations, tuple(story), order)


def replay(program: Program, schedule: Schedule, tell: bool = False) -> Outcome:
    """Runs the day of a schedule."""
    return play(program, schedule.scenario, schedule.seed, given(schedule.faults), tell)


def _day(world: World, scenario: str) -> tuple[str, str, str]:
    home = Home({}, local=True, owner=SCENARIO_OWNER)
    ended: list[str] = []
    app: list[App] = []

    def act() -> None:
        made, home.modules = world.program.load()
        made.deployment.client = world.client  # type: ignore[assignment]
        home.settle()
        app.append(made)
        world.point(about)
        ended.append(_failure(world, made.scenarios[scenario]))

    about = Attempt(0, "", "", 1)
    task = world.tasks.start(act, home)
    task.about = about
    until = EPOCH_S + LONGEST_S
    try:
        while not ended or not world.rests:
            if not world.tasks.step(until):
                waits = f"the scenario waits for {task.waits}" if not ended else "calls are still under way"
                return REST, f"The day does not come to rest: {waits}.", ""
    except Endless:
        return REST, "The day does not come to rest: it goes round in circles.", ""
    if not app:
        return REST, f"The app cannot be loaded: {ended}", ""
    world.quiet = True
    world.say(0, "at rest")
    for name, holds in app[0].invariants.items():
        message = _held(world, holds, home, about)
        if message:
            world.say(0, f"{name}: {message}")
            return name, message, ended[0]
    return "", "", ended[0]


def _failure(world: World, run: Callable[[], Any]) -> str:
    try:
        _finished(world, run())
    except BaseException as error:
        world.say(0, f"the scenario ends with {type(error).__name__}: {error}")
        return f"{type(error).__name__}: {error}"
    return ""


def _held(world: World, holds: Callable[[], Any], home: Home, about: Attempt) -> str:
    """Why an invariant does not hold; empty if it does. It may take its time, and no faults come any more."""
    said: list[str] = []
    task = world.tasks.start(lambda: said.append(_judged(world, holds)), home)
    task.about = about
    while not said:
        if not world.tasks.step(world.tasks.now + LONGEST_S):
            return f"It waits for {task.waits}."
    return said[0]


def _judged(world: World, holds: Callable[[], Any]) -> str:
    """Why an invariant does not hold; empty if it does."""
    try:
        answer = _finished(world, holds())
    except BaseException as error:
        return complaint(error)
    return verdict(answer)


def verdict(answer: Any) -> str:
    """What an invariant returned: a sentence, or False, if it does not hold."""
    return answer if isinstance(answer, str) else "It returned False." if answer is False else ""


def complaint(error: BaseException) -> str:
    """What an invariant raised; of an `assert` without words its line."""
    if isinstance(error, AssertionError):
        return str(error) or (traceback.extract_tb(error.__traceback__)[-1].line or "an assertion failed")
    return f"{type(error).__name__}: {error}"


def _finished(world: World, result: Any) -> Any:
    return loops.finish(world.tasks, result) if inspect.iscoroutine(result) else result
