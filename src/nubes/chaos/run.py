"""A run: start a cloud, load it, break it, let it come to rest, shut it down, and gather what everybody wrote down."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from nubes.chaos import faults, journal, logged, plants
from nubes.chaos.audit import Finding, audit
from nubes.chaos.cloud import Cloud, Plan
from nubes.chaos.evidence import Ask, Evidence, Told
from nubes.chaos.schedule import chosen, schedule

SETTLE_S = 60.0  # how long after the last fault everything may take to be answered
_LOOK_S = 1.0


@dataclass
class Report:
    """What came of a run. `findings` are broken promises; `overlapping` executions are allowed, and counted."""

    evidence: Evidence
    findings: list[Finding]
    faults: Counter[str]
    impossible: list[str]
    seconds: float
    overlapping: int = 0
    planted: str = ""
    isolated: bool = False


def run(
    folder: Path, plan: Plan, seconds: float, rate: float = 0.5, kinds: str = "", plant: str = "",
    tell: Callable[[str], None] = lambda _: None,
) -> Report:  # fmt: skip
    """Breaks a cloud in `folder`, which must be new, for so long, or until Ctrl-C; then judges it.

    Raises `UsageError` for faults that there are not, `NubesError` if the cloud does not come up.
    """
    chosen(kinds, ())
    if plant:
        plants.check(plant)
    cloud = Cloud(folder, replace(plan, entry="nubes.chaos.early") if plant == plants.EARLY else plan)
    keep = True
    try:
        cloud.start()
        possible, impossible = faults.possible(cloud)
        breaker = faults.Breaker(cloud, schedule(plan.seed, seconds, rate, chosen(kinds, possible)))
        began = time.monotonic()
        try:
            pause(cloud, breaker, seconds, tell)
        except KeyboardInterrupt:
            tell("stopped; what was accepted is waited for")
        took = time.monotonic() - began
        breaker.heal()
        cloud.trouble += rest(cloud)
        late = cloud.shut_down()
        if plant:
            plants.plant(plant, folder)
        evidence = gather(folder)
        evidence.left_over = [*late, *cloud.left_over()]
        evidence.ended_alone = cloud.trouble
        counts = Counter(fault.kind for fault in breaker.done)
        twice = journal.overlapping(evidence.runs)
        findings = audit(evidence)
        keep = bool(findings)
        return Report(evidence, findings, counts, impossible, took, twice, plant, cloud.isolated)
    finally:
        cloud.close(keep)


def pause(cloud: Cloud, breaker: faults.Breaker, seconds: float, tell: Callable[[str], None] = lambda _: None) -> None:
    """Lets so much time go by, while faults come and what ended is started again."""
    looked, end = 0.0, time.monotonic() + seconds
    while (now := time.monotonic()) < end:
        before = len(breaker.done)
        breaker.step()
        for fault in breaker.done[before:]:
            tell(f"{end - now:6.1f} s to go: {fault.kind} {fault.what}")
        cloud.watch()
        if now - looked > _LOOK_S:
            looked = now
            cloud.look()
        time.sleep(0.02)


def rest(cloud: Cloud) -> list[str]:
    """All faults are over: everything comes to its answer. What did not."""
    end = time.monotonic() + SETTLE_S
    while time.monotonic() < end:
        cloud.watch()
        if cloud.plane.pid and (cloud.data / "socket").exists() and _answers(cloud):
            break
        time.sleep(0.1)
    return [*cloud.stop_clients(SETTLE_S), *cloud.settle(SETTLE_S)]


def _answers(cloud: Cloud) -> bool:
    try:
        return len(cloud.ask("status")["machines"]) == cloud.plan.machines + 1
    except Exception:
        return False


def gather(folder: Path) -> Evidence:
    """The evidence that a run left in its folder."""
    evidence = Evidence(faults=list(journal.read(folder / "faults.jsonl")))
    for path in sorted((folder / "journals").glob("*.jsonl")):
        for record in journal.read(path):
            if isinstance(record, Ask):
                evidence.asks.append(record)
            elif isinstance(record, Told):
                evidence.tolds.append(record)
    evidence.runs = journal.runs(folder / "ledger")
    evidence.log = logged.of_folder(folder / "data")
    left = folder / "left.json"
    if left.exists():
        kept = msgspec.json.decode(left.read_bytes())
        evidence.queue_left, evidence.dict_left = kept["queue"], kept["dict"]
    return evidence
