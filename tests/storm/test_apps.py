"""Planted bugs are found within a fixed number of days, shrunk, and repeat live; what is right is left in peace."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("greenlet", reason="needs the package greenlet: pip install 'nubes[storm]'")

from nubes.storm import live, spec
from nubes.storm.crew import Crew, Found, crew
from nubes.storm.spec import KINDS, Fault, Outcome, Schedule

APPS = Path(__file__).parent / "apps"
BUDGETS = {"charge": 400, "stock": 400, "resize": 400, "lease": 2000, "memory": 400, "receipt": 400}  # days
MOST_FAULTS = 5


def _quiet(played: int, failed: int) -> None:
    """Nobody watches."""


def _find(made: Crew, name: str) -> Found:
    search = made.search(0, BUDGETS[name], _quiet)
    assert search.found is not None, f"{search.days} days, and nothing was found"
    return search.found


@pytest.fixture(scope="module", params=BUDGETS)
def planted(request: pytest.FixtureRequest) -> Iterator[tuple[str, Crew, Found]]:
    with crew(str(APPS / f"{request.param}.py"), 2) as made:
        yield request.param, made, _find(made, request.param)


def test_a_planted_bug_is_found_and_shrunk(planted: tuple[str, Crew, Found]) -> None:
    _, made, found = planted
    schedule = found.schedule
    assert 1 <= len(schedule.faults) <= MOST_FAULTS
    assert schedule.breaks in made.workers[0].ready.invariants  # type: ignore[union-attr]
    assert found.outcome.breaks == schedule.breaks
    assert found.outcome.message == schedule.message
    assert found.outcome.faults == schedule.faults  # each came about
    for left_out in range(len(schedule.faults)):
        fewer = schedule.faults[:left_out] + schedule.faults[left_out + 1 :]
        assert made.replay(Schedule(schedule.scenario, schedule.seed, fewer)).breaks != schedule.breaks


def test_a_day_is_the_same_in_every_process(planted: tuple[str, Crew, Found], tmp_path: Path) -> None:
    name, made, found = planted
    spec.save(found.schedule, tmp_path / "storm.json")
    with crew(str(APPS / f"{name}.py"), 1) as other:
        again = other.replay(spec.load(tmp_path / "storm.json"))
    assert again == found.outcome
    assert made.replay(found.schedule) == again


def test_a_planted_bug_repeats_live(planted: tuple[str, Crew, Found]) -> None:
    name, _, found = planted
    verdict = live.play(str(APPS / f"{name}.py"), found.schedule, found.outcome)
    assert verdict.breaks == found.schedule.breaks
    assert verdict.message == found.schedule.message
    assert verdict.faults == len(found.schedule.faults)


@pytest.mark.parametrize("name", BUDGETS)
def test_nothing_is_found_in_what_is_mended(name: str) -> None:
    with crew(str(APPS / f"{name}_mended.py"), 2) as made:
        search = made.search(0, BUDGETS[name], _quiet)
    assert search.found is None
    assert search.days == BUDGETS[name]
    assert search.faults > BUDGETS[name] / 2  # there was something to withstand


def test_the_number_of_workers_changes_nothing() -> None:
    with crew(str(APPS / "stock.py"), 1) as one, crew(str(APPS / "stock.py"), 3) as three:
        assert one.search(0, 400, _quiet) == three.search(0, 400, _quiet)


# -- every kind of function --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kinds() -> Iterator[Crew]:
    with crew(str(APPS / "kinds.py"), 2) as made:
        yield made


def test_every_kind_of_function_works_on_a_day_without_faults(kinds: Crew) -> None:
    outcome = kinds.replay(Schedule("day"))
    assert (outcome.breaks, outcome.message, outcome.stopped) == ("", "", "")
    assert outcome.seconds > 7200


def test_every_kind_of_function_withstands_a_storm(kinds: Crew) -> None:
    search = kinds.search(1, 100, _quiet)
    assert search.found is None, search.found


def test_every_kind_of_function_works_live() -> None:
    schedule = Schedule("brief", 0, (Fault("kill", "1", "shortly", after=1),))
    with crew(str(APPS / "kinds.py"), 1) as made:
        outcome = made.replay(schedule)
    assert outcome.faults == schedule.faults
    verdict = live.play(str(APPS / "kinds.py"), schedule, outcome)
    assert (verdict.breaks, verdict.message, verdict.stopped) == ("", "", "")
    assert verdict.faults == 1


# -- what a fault does ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def faults() -> Iterator[Crew]:
    with crew(str(APPS / "faults.py"), 1) as made:
        yield made


def _day(made: Crew, *given: Fault) -> Outcome:
    outcome = made.replay(Schedule("day", 0, given))
    assert outcome.faults == given
    return outcome


def _noted(outcome: Outcome) -> dict[str, object]:
    """What the app's invariant tells of the day: it never holds."""
    assert outcome.breaks == "told"
    noted: dict[str, object] = eval(outcome.message)
    return noted


def test_who_is_killed_does_not_get_to_its_finally(faults: Crew) -> None:
    assert _noted(_day(faults))["finally"] == 1
    noted = _noted(_day(faults, Fault("kill", "1", "step", after=2)))
    assert noted["finally"] == 1  # the second attempt's alone
    assert noted["begun"] == 2


def test_an_answer_that_was_not_told_is_worked_out_again(faults: Crew) -> None:
    noted = _noted(_day(faults, Fault("kill", "1", "step", after=5)))
    assert (noted["begun"], noted["finally"]) == (2, 2)


def test_a_lost_machine_takes_all_its_instances_along(faults: Crew) -> None:
    noted = _noted(_day(faults, Fault("machine", "2", "outer", after=1)))
    assert noted["outer"] == "InstanceDied"
    assert "inner" not in noted  # who called it is gone, and the call with it


def test_a_restart_fails_calls_that_wait_and_runs_kept_ones_again(faults: Crew) -> None:
    noted = _noted(_day(faults, Fault("restart", "2", "outer", after=0)))
    assert noted["outer"] == "Unavailable"
    noted = _noted(_day(faults, Fault("restart", "1", "step", after=2)))
    assert noted["begun"] == 2
    assert noted["step"] == "done"


def test_a_delay_and_a_step_of_the_clock_are_told_apart(faults: Crew) -> None:
    assert _noted(_day(faults))["clocks"] == (0, 0)
    assert _noted(_day(faults, Fault("delay", "3", "clocks", seconds=0.0, after=1)))["clocks"] == (0, 0)
    assert _noted(_day(faults, Fault("delay", "3", "clocks", seconds=30.0, after=1)))["clocks"] == (30, 30)
    assert _noted(_day(faults, Fault("clock", "3", "clocks", seconds=-60.0, after=1)))["clocks"] == (-60, 0)


def test_memory_belongs_to_an_instance(faults: Crew) -> None:
    assert _noted(_day(faults))["memory"] == [1, 2]
    assert _noted(_day(faults, Fault("kill", "5", "remember")))["memory"] == [1, 1]


def test_every_kind_of_fault_is_drawn() -> None:
    with crew(str(APPS / "never.py"), 2) as made:
        search = made.search(1, 50, _quiet)
    assert search.found is not None
    assert search.found.schedule.faults == ()  # it fails without any
    assert set(KINDS) == {"kill", "machine", "restart", "delay", "clock"}


@pytest.mark.parametrize("kind", ["restart", "machine"])
def test_restarts_and_lost_machines_come_about_live(kind: str) -> None:
    schedule = Schedule("day", 0, (Fault(kind, "1", "charge", after=2),))
    with crew(str(APPS / "charge.py"), 1) as made:
        outcome = made.replay(schedule)
    assert outcome.message == "Charges by order: {'tea': 2}."
    verdict = live.play(str(APPS / "charge.py"), schedule, outcome)
    assert (verdict.message, verdict.faults) == (outcome.message, 1)
