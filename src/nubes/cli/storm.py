"""`nubes storm`: a user's own app on thousands of simulated days full of faults."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nubes.cli import output
from nubes.cli.options import Json
from nubes.cli.progress import progress_bar
from nubes.kernel.errors import UsageError

if TYPE_CHECKING:
    from nubes.storm.crew import Crew, Search
    from nubes.storm.live import Verdict
    from nubes.storm.spec import Outcome, Schedule

FOUND = 1


def storm(
    what: Annotated[
        str, typer.Argument(metavar="FILE[::APP]", help="A Python file, and in it an app: else the only one.")
    ],
    days: Annotated[int, typer.Option(min=1, help="How many days to play.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="The number of the first day.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that play; 0: one for each core.")] = 0,
    save: Annotated[Path | None, typer.Option(help="Write the smallest failing schedule to this file.")] = None,
    replay: Annotated[Path | None, typer.Option(help="Play the day of this file instead of looking for one.")] = None,
    live: Annotated[bool, typer.Option("--live", help="Play it for real, too, on a control plane of its own.")] = False,
    json: Json = False,
) -> int:
    """Play simulated days of an app while machines, disks and clocks fail; show the smallest schedule that breaks it.

    Ends with 1 if an invariant of the app was broken, 0 if none was.
    """
    try:
        import greenlet  # noqa: F401
    except ImportError:
        raise UsageError("`nubes storm` needs the package greenlet.", 'pip install "nubes[storm]"') from None
    from nubes.storm import spec
    from nubes.storm.crew import crew

    with crew(what, 1 if replay is not None else workers) as made:
        if replay is not None:
            schedule = spec.load(replay)
            outcome = made.replay(schedule)
            verdict = _live(what, schedule, outcome, json) if live else None
            _show_replay(schedule, outcome, verdict, json)
            return FOUND if (verdict.breaks if verdict is not None else outcome.breaks) else 0
        search, took_s = _search(made, seed, days, quiet=json)
    if search.found is None:
        _show_nothing(search, took_s, json)
        return 0
    schedule = search.found.schedule
    if save is not None:
        spec.save(schedule, save)
    verdict = _live(what, schedule, search.found.outcome, json) if live else None
    _show_found(what, search, took_s, save, verdict, json)
    return FOUND


def _search(made: Crew, seed: int, days: int, quiet: bool) -> tuple[Search, float]:
    begun = time.monotonic()
    if quiet:
        return made.search(seed, days, lambda played, failed: None), time.monotonic() - begun
    with progress_bar() as bar:

        def progress(played: int, failed: int) -> None:
            if bar is not None:
                bar(played / days, f"{played:,} days, {failed} of the last failed" if failed else f"{played:,} days")

        search = made.search(seed, days, progress)
    return search, time.monotonic() - begun


def _live(what: str, schedule: Schedule, outcome: Outcome, quiet: bool) -> Verdict:
    from nubes.storm import live

    if not quiet:
        print("Playing it live ...", file=sys.stderr, flush=True)
    return live.play(what, schedule, outcome)


def _show_nothing(search: Search, took_s: float, json: bool) -> None:
    if json:
        output.as_json({"days": search.days, "faults": search.faults, "seconds": round(took_s, 3), "found": None})
        return
    played = f"{search.days:,} days with {search.faults:,} faults and {search.operations:,} operations"
    print(f"{played}: every invariant held. ({search.days / took_s:,.0f} days a second)")


def _show_found(
    what: str, search: Search, took_s: float, save: Path | None, verdict: Verdict | None, json: bool
) -> None:
    from nubes.storm import story

    found = search.found
    assert found is not None
    schedule = found.schedule
    if json:
        output.as_json(
            {
                "days": search.days,
                "faults": search.faults,
                "seconds": round(took_s, 3),
                "found": {
                    "day": found.day,
                    "breaks": schedule.breaks,
                    "message": schedule.message,
                    "schedule": schedule,
                    "story": [line.rstrip() for line in story.timeline(found.outcome)],
                },
                "live": verdict,
            }
        )
        return
    print(f"{schedule.breaks} does not hold: {schedule.message}\n")
    origin = f"day {found.day} with {found.before} fault{'s' * (found.before != 1)}"
    days = search.days + search.shrinking_days
    print(f"The smallest schedule that breaks it ({origin}, {days:,} days, {took_s:.1f} s):")
    for line in story.faults(schedule):
        print(f"  {line}")
    print("\nThat day:")
    for line in story.timeline(found.outcome):
        print(line)
    if verdict is not None:
        _show_verdict(verdict)
    if save is None:
        print(f"\nTo keep it: nubes storm {what} --save storm.json")
    else:
        print(f"\nAgain: nubes storm {what} --replay {save}; for real: add --live")


def _show_replay(schedule: Schedule, outcome: Outcome, verdict: Verdict | None, json: bool) -> None:
    from nubes.storm import story

    if json:
        told = [line.rstrip() for line in story.timeline(outcome)]
        output.as_json(
            {
                "schedule": schedule,
                "breaks": outcome.breaks,
                "message": outcome.message,
                "story": told,
                "live": verdict,
            }
        )
        return
    for line in story.faults(schedule):
        print(f"  {line}")
    print()
    for line in story.timeline(outcome):
        print(line)
    print(
        f"\nSimulated: {outcome.breaks} does not hold: {outcome.message}"
        if outcome.breaks
        else "\nSimulated: all holds."
    )
    if len(outcome.faults) < len(schedule.faults):
        print(
            f"{len(schedule.faults) - len(outcome.faults)} of its faults had no place: their points were not reached."
        )
    if verdict is not None:
        _show_verdict(verdict)


def _show_verdict(verdict: Verdict) -> None:
    if verdict.breaks:
        print(f"\nLive it repeats: {verdict.breaks} does not hold: {verdict.message}")
    else:
        print(f"\nLive it does not repeat: all holds ({verdict.faults} faults came about).")
