"""Running one seed: what came of it, or its story."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from nubes.drivers.sim.faults.plan import Plan
from nubes.drivers.sim.faults.world import Failure, World


class Outcome(NamedTuple):
    """`wrong` is empty if all that must hold held. `digest` is the same for the same story."""

    wrong: str
    events: int
    digest: int
    world: World


def run(seed: int, plan: Plan | None = None, tell: Callable[[str], None] | None = None) -> Outcome:
    """Runs a seed, with a plan of its own or a given one."""
    world = World(seed, plan, tell)
    wrong = ""
    try:
        world.run()
    except Failure as failure:
        wrong = str(failure)
    except Exception as error:  # the code under test raised: that is a finding
        where = traceback.extract_tb(error.__traceback__)[-1]
        wrong = f"{type(error).__name__}: {error} ({where.name}, line {where.lineno} of {where.filename})"
    return Outcome(wrong, world.events, world.digest, world)


def story(seed: int, bundle: str | None = None) -> str:
    """Prints a seed's plan and everything that happens, step by step; returns what is wrong in the end."""
    from nubes.drivers.sim.faults.plan import draw
    from nubes.kernel.rng import rng
    from nubes.replay.bundle import write

    plan = draw(rng(seed, "plan"))
    print(f"Seed {seed}: {plan}")
    outcome = run(seed, plan, print)
    print(f"WRONG: {outcome.wrong}" if outcome.wrong else f"All held, in {outcome.events} events.")
    if bundle is not None:
        records, last = outcome.world.oracle.lineage, outcome.world.last_record
        write(Path(bundle), records, min(last, len(records)), wrong=outcome.wrong)
        print(f"The state before is in {bundle}: nubes open {bundle}")
    return outcome.wrong
