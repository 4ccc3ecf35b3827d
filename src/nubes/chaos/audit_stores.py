"""What was promised of queues and dicts: at most one taker for each item, and the last value that was set."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from nubes.chaos.evidence import DONE, NOT_YET, REFUSED, Ask, Evidence, Told


def queue(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """(kind, what) of each finding. An item may be gone only with a taker that was never told what it took."""
    told = _told(evidence)
    puts = {ask.token: told.get((ask.client, ask.op)) for ask in evidence.asks if ask.kind == "put"}
    taken: Counter[str] = Counter()
    in_the_dark = 0  # takers that do not know what they took, if anything
    for ask in evidence.asks:
        if ask.kind == "take":
            end = told.get((ask.client, ask.op))
            if end is None or end.status not in (DONE, NOT_YET, REFUSED):
                in_the_dark += 1
            elif end.status == DONE:
                taken[end.said] += 1
    left = Counter(evidence.queue_left)
    for item, times in sorted((taken + left).items()):
        if item not in puts:
            yield "queue-unasked", f"{item} came out of the queue, and nobody had put it there"
        elif times > 1:
            yield "queue-twice", f"{item} was put once, taken {taken[item]} times, and is there {left[item]} times"
    gone = [item for item, end in puts.items() if end is not None and end.status == DONE and not (taken + left)[item]]
    if len(gone) > in_the_dark:
        some = ", ".join(sorted(gone)[:5])
        yield "queue-lost", f"{len(gone)} items are gone ({some}), and only {in_the_dark} takers were told nothing"


def dicts(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """(kind, what) of each finding. Each key has one writer, who does one thing after the other."""
    told = _told(evidence)
    by_key: dict[str, list[tuple[Ask, Told | None]]] = defaultdict(list)
    for ask in sorted(evidence.asks, key=lambda one: one.at_s):
        if ask.kind in ("set", "look"):
            by_key[ask.key].append((ask, told.get((ask.client, ask.op))))
    for key, steps in sorted(by_key.items()):
        may_be = {""}
        for ask, end in steps:
            if ask.kind == "set":
                if end is not None and end.status == DONE:
                    may_be = {ask.token}
                elif end is None or end.status != REFUSED:
                    may_be.add(ask.token)
            elif end is not None and end.status == DONE:
                if end.said not in may_be:
                    yield "dict-wrong", f"{key} showed {end.said!r} at {end.at_s:.3f}, not one of {sorted(may_be)}"
                may_be = {end.said}
        now = evidence.dict_left.get(key, "")
        if now not in may_be:
            yield "dict-wrong", f"{key} is {now!r} at the end, not one of {sorted(may_be)}"


def _told(evidence: Evidence) -> dict[tuple[str, int], Told]:
    return {(told.client, told.op): told for told in evidence.tolds}
