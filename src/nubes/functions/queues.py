"""The calls that wait for a function: a deque, or a heap if the queueing policy orders them."""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappop, heappush

from nubes.functions.state import WAITS, Call, Function, State


def enqueue(c: State, f: Function, call: Call, front: bool = False) -> None:
    """Puts a call into the queue of `f`; `front`: it was at its turn already, if turns are by arrival."""
    call.instance = WAITS
    f.queued += 1
    if isinstance(f.waiting, list):
        c.sequence += 1
        heappush(f.waiting, (c.queueing.order(f, call), c.sequence, call))
    elif front:
        f.waiting.appendleft(call)
    else:
        f.waiting.append(call)


def head(f: Function) -> Call:
    """The next call of `f`, which stays where it is."""
    return f.waiting[0] if isinstance(f.waiting, deque) else f.waiting[0][2]


def take(f: Function) -> Call:
    """The next call of `f`, which leaves the queue."""
    f.queued -= 1
    return f.waiting.popleft() if isinstance(f.waiting, deque) else heappop(f.waiting)[2]


def waiting(f: Function) -> list[Call]:
    """All calls in the queue of `f`, in no particular order."""
    return list(f.waiting) if isinstance(f.waiting, deque) else [call for _, _, call in f.waiting]


def unqueue(f: Function, gone: set[int]) -> None:
    """Takes calls out of the queue of `f`."""
    if not gone or not f.queued:
        return
    if isinstance(f.waiting, deque):
        f.waiting = deque(call for call in f.waiting if call.id not in gone)
    else:
        f.waiting = [entry for entry in f.waiting if entry[2].id not in gone]
        heapify(f.waiting)
    f.queued = len(f.waiting)


def refill(c: State, f: Function, calls: list[Call]) -> None:
    """Makes a queue of `calls` for `f`, of the kind that the queueing policy wants."""
    f.waiting = [] if c.queueing.ordered else deque()
    f.queued = 0
    for call in calls:
        enqueue(c, f, call)
