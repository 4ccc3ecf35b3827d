"""What would have saved cold-start time in a recorded run, by how much, and at what cost: the largest saving first."""

from __future__ import annotations

import msgspec

from nubes.kernel.units import show_seconds
from nubes.replay.ledger import START_PARTS, Ledger, Start
from nubes.replay.measures import DOLLARS_PER_GIB_S

DAY_S = 86_400.0
WINDOWS_S = (300.0, 600.0, 1200.0, 1800.0, 3600.0, 7200.0, 14_400.0, 28_800.0, 86_400.0)
MOST = 0.8  # share of the avoidable starts that a longer window should catch
LEAST_S, LEAST_SHARE = 1e-3, 0.01  # savings below this, or below this share of all, are not worth a word
HOOK_S = 0.010  # a set-up below this needs no snapshot


class Advice(msgspec.Struct, frozen=True):
    """`saves_s`: seconds that calls of the recording would not have waited. Savings of one function overlap.

    `dollars_per_day`: what it holds in memory beyond what was held, at list price.
    """

    function: str
    what: str
    change: str  # as it is written in the app or on the command line
    saves_s: float
    share: float  # of all that calls waited for starts
    starts: int  # cold starts it would have spared or shortened
    dollars_per_day: float


def advice(ledger: Ledger) -> list[Advice]:
    """All that applies, ranked by what it saves."""
    total = sum(f.parts[part] for f in ledger.functions for part in START_PARTS)
    found: list[Advice] = []
    for function in ledger.functions:
        cold = [s for s in ledger.starts if s.function == function.function and s.complete]
        if cold:
            found += _keep_one(ledger, function.function, cold)
            found += _keep_longer(ledger, function.function, cold)
            found += _snapshot(ledger, function.function, cold)
            found += _parents(ledger, function.function, cold)
            found += _room(function.function, cold)
    ranked = sorted((a for a in found if a.saves_s >= max(LEAST_S, LEAST_SHARE * total)), key=lambda a: -a.saves_s)
    return [msgspec.structs.replace(a, share=a.saves_s / total) for a in ranked]


def _keep_one(ledger: Ledger, name: str, cold: list[Start]) -> list[Advice]:
    """An instance that is always there."""
    spec = ledger.specs[name]
    alone = [s for s in cold if s.alone]
    if spec.min_instances or not alone:
        return []
    end_s = max(s.answered_s for s in ledger.starts if s.complete)
    spans = sorted((s.created_s, min(s.stopped_s, end_s)) for s in ledger.starts if s.function == name)
    missing_s = max(0.0, ledger.seconds - _union(spans))
    cost = _dollars_per_day(missing_s * spec.memory_bytes, ledger.seconds)
    what = "Keep one instance at all times."
    return [Advice(name, what, "min_instances=1", sum(s.waited_s for s in alone), 0.0, len(alone), cost)]


def _keep_longer(ledger: Ledger, name: str, cold: list[Start]) -> list[Advice]:
    """A window that reaches to the call that came too late for the last one."""
    late = sorted((s for s in cold if s.gap_s <= WINDOWS_S[-1]), key=lambda s: s.gap_s)
    if not late:
        return []
    enough = late[min(len(late) - 1, int(MOST * len(late)))].gap_s
    window = next(w for w in WINDOWS_S if w >= enough)
    caught = [s for s in late if s.gap_s <= window]
    held_s = sum(min(gap, window) for gap in ledger.idle_ends_s.get(name, []))
    cost = _dollars_per_day(held_s * ledger.specs[name].memory_bytes, ledger.seconds)
    what = f"Keep idle instances {show_seconds(window)} longer: the next call came within that."
    change = f'keep_alive="fixed-window(keep={window:g}s)"'
    return [Advice(name, what, change, sum(s.waited_s for s in caught), 0.0, len(caught), cost)]


def _snapshot(ledger: Ledger, name: str, cold: list[Start]) -> list[Advice]:
    """Set-up done once, in the parent that instances are forked from."""
    setup_s = sum(s.parts()["setup"] for s in cold)
    if ledger.specs[name].kind != "class" or setup_s / len(cold) < HOOK_S:
        return []
    what = "Run the set-up once, in the parent that instances are forked from (what opens sockets, in another hook)."
    return [Advice(name, what, "@nubes.enter(snap=True)", setup_s, 0.0, len(cold), 0.0)]


def _parents(ledger: Ledger, name: str, cold: list[Start]) -> list[Advice]:
    """Less to import, or no waiting for parents."""
    found = []
    policy = ledger.policies["cold-start"].partition("(")[0]
    bare = [s for s in cold if s.source == "interpreter"]
    saved_s = sum(s.parts()["fork"] + s.parts()["import"] for s in bare)
    if bare and policy in ("fresh", "zygote"):
        what = "Fork instances from a parent that has imported the module."
        found.append(Advice(name, what, "nubes policy set cold-start seuss", saved_s, 0.0, len(bare), 0.0))
    shared = [s for s in cold if s.source == "parent"]
    if shared:
        what = "The parent lacks the function's own module: keep that in a parent too, or import later, within calls."
        change = "nubes policy set cold-start seuss"
        found.append(Advice(name, what, change, sum(s.parts()["import"] for s in shared), 0.0, len(shared), 0.0))
    waited = [s for s in cold if s.parts()["parent"] > LEAST_S]
    if waited:
        what = "Calls waited for a parent to grow: deploy ahead of the first call, or start without waiting."
        change = (
            "nubes policy set cold-start catalyzer" if policy != "catalyzer" else "nubes deploy, before the first call"
        )
        found.append(Advice(name, what, change, sum(s.parts()["parent"] for s in waited), 0.0, len(waited), 0.0))
    return found


def _room(name: str, cold: list[Start]) -> list[Advice]:
    """Starts that had to wait for CPU, memory or a place among the function's instances."""
    queued = [s for s in cold if s.parts()["queue"] > LEAST_S]
    if not queued:
        return []
    what = "Calls waited before an instance was even asked for: give it more room."
    change = "a higher max_instances, or more --cpu and --memory"
    return [Advice(name, what, change, sum(s.parts()["queue"] for s in queued), 0.0, len(queued), 0.0)]


def _union(spans: list[tuple[float, float]]) -> float:
    """Seconds covered by at least one span."""
    covered, until = 0.0, -1.0
    for start, stop in spans:
        covered += max(0.0, stop - max(start, until))
        until = max(until, stop)
    return covered


def _dollars_per_day(byte_s: float, seconds: float) -> float:
    return byte_s / 2**30 * DOLLARS_PER_GIB_S * DAY_S / seconds if seconds > 0 else 0.0
