"""The client of a live storm: `python -m nubes.storm.player FILE`.

It deploys the app, plays the scenario, waits for rest and checks the invariants on what is stored then. Its last line
is the verdict.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from nubes import client as clients
from nubes.cli import target
from nubes.kernel.errors import NubesError
from nubes.storm import inside, senses
from nubes.storm.attempts import Attempt
from nubes.storm.counting import attempt
from nubes.storm.day import complaint, verdict
from nubes.storm.live import Verdict
from nubes.storm.spec import REST

PATIENCE_S = 120.0  # how long calls may still be under way
_LOOK_S = 0.05


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    stage = inside.install(Path(os.environ.pop(inside.VARIABLE)))
    module, name = target.load(sys.argv[1], as_module=False)
    app = target.the_app(module, name, sys.argv[1].partition("::")[0])
    senses.dress(module)
    app.deploy()
    scenario = Attempt(0, "", "", 1)
    attempt.set(scenario)
    stage.point(scenario)
    stopped = ""
    try:
        _finished(app.scenarios[stage.schedule.scenario])
    except Exception as error:
        stopped = f"{type(error).__name__}: {error}"
    attempt.set(None)
    made = Verdict(stopped=stopped)
    if not _rests():
        made = Verdict(REST, "Calls are still under way.", stopped)
    else:
        for label, holds in app.invariants.items():
            message = _judged(holds)
            if message:
                made = Verdict(label, message, stopped)
                break
    answers.write(msgspec.json.encode(made) + b"\n")
    os._exit(0)


def _rests() -> bool:
    """Waits until no call is under way."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        try:
            if not clients.connect(start=False).ask("status")["calls"]:
                return True
        except NubesError:
            pass  # it comes back
        senses.real_sleep(_LOOK_S)
    return False


def _judged(holds: Callable[[], Any]) -> str:
    try:
        return verdict(_finished(holds))
    except Exception as error:
        return complaint(error)


def _finished(run: Callable[[], Any]) -> Any:
    result = run()
    return asyncio.run(result) if inspect.iscoroutine(result) else result


if __name__ == "__main__":
    main()
