"""How calls end: everybody who waits for one is told once, and answers of durable calls are kept for a while."""

from __future__ import annotations

from nubes.functions.events import CANCELLED, Resolve, Submitted
from nubes.functions.state import SHARES, WAITS, Call, Result, State

RESULTS_S, RESULTS_MAX = 86_400.0, 100_000  # how long, and how many, answers of durable calls are kept


def known(c: State, event: Submitted) -> bool:
    """Whether a call of the same idempotency key is under way or answered; this one then gets the same answer.

    A durable call needs no answer of its own: its caller is told the id of the first one.
    """
    first = c.keys.get((event.function + event.variant, event.key), -1)
    call, result = c.calls.get(first), c.results.get(first)
    if event.keep:
        return result is not None or (call is not None and call.keep)
    if call is not None:
        call.also += (event.call,)
        c.aliases[event.call] = call.id
        c.owners[event.call] = event.owner
    elif result is not None:
        c.out.append(Resolve(event.call, result.status, result.reason, result.output))
    return call is not None or result is not None


def follow(c: State, call: Call, first: Call) -> None:
    """A durable call comes while one of its key runs that is not: it gets that one's answer, or takes its place."""
    c.calls[call.id] = call
    c.keys[call.asked, call.key] = call.id
    call.instance = SHARES
    first.also += (call.id,)
    c.aliases[call.id] = first.id


def followed(c: State, call: Call) -> bool:
    """Whether a durable call waits for the answer of this one, which is not."""
    return any(id in c.calls for id in call.also)


def hang_up(c: State, owner: int) -> list[Call]:
    """A client is gone: those of its calls that end with it. Others wait for the same answer as the rest."""
    for alias in [id for id, client in c.owners.items() if client == owner]:
        leave(c, alias)
    ending = []
    for call in [call for call in c.calls.values() if call.owner == owner and not call.keep]:
        if call.also and not followed(c, call):
            call.owner = c.owners[call.also[0]]
        else:
            ending.append(call)
    return ending


def heir(c: State, call: Call) -> Call | None:
    """The durable call that waits for the answer of one that is not and will have none: all of the key now wait for it.

    It is nowhere yet: it is to arrive as if it had just come.
    """
    following = next((c.calls[id] for id in call.also if id in c.calls), None)
    if following is not None:
        _unlink(c, following.id)
        following.also += call.also
        c.aliases.update(dict.fromkeys(call.also, following.id))
        call.also = ()
    return following


def leave(c: State, alias: int) -> None:
    """One of several who wait for the same answer waits no longer; the work goes on for the others."""
    _unlink(c, alias)
    c.out.append(Resolve(alias, CANCELLED, "The call was cancelled."))


def _unlink(c: State, alias: int) -> None:
    call = c.calls[c.aliases.pop(alias)]
    c.owners.pop(alias, None)
    call.also = tuple(id for id in call.also if id != alias)


def resolve(c: State, call: Call, status: str, reason: str, output: bytes, now: float) -> None:
    """The call has ended. `reason` is empty if the function itself answered."""
    if call.instance == SHARES:
        _unlink(c, call.id)
    del c.calls[call.id]
    c.out.append(Resolve(call.id, status, reason, output))
    for id in call.also:
        del c.aliases[id]
        if id in c.calls:
            c.calls[id].instance = WAITS
            resolve(c, c.calls[id], status, reason, output, now)
        else:
            del c.owners[id]
            c.out.append(Resolve(id, status, reason, output))
    if call.keep:
        for id in (call.id, *call.also):
            c.results[id] = Result(now, call.asked, status, reason, output)
        _forget(c, now)
    elif call.key and c.keys.get((call.asked, call.key)) == call.id:
        del c.keys[call.asked, call.key]


def forget(c: State, call: Call, first: int) -> None:
    """Nothing is kept of a call that was resolved, as if it had never come. It waited for the answer of `first`."""
    for id in (call.id, *call.also):
        c.results.pop(id, None)
    if call.key and c.keys.get((call.asked, call.key)) == call.id:
        del c.keys[call.asked, call.key]
        if first in c.calls:
            c.keys[call.asked, call.key] = first


def _forget(c: State, now: float) -> None:
    """Drops answers that are too old or too many; they stand in order of time."""
    while c.results:
        oldest = next(iter(c.results.values()))
        if len(c.results) <= RESULTS_MAX and oldest.at > now - RESULTS_S:
            return
        c.results.popitem(last=False)
        if len(c.keys) > 2 * len(c.results) + len(c.calls):
            c.keys = {key: id for key, id in c.keys.items() if id in c.results or id in c.calls}


def disconnect(c: State) -> None:
    """Everybody who waited on a connection is gone, and with them all calls that are not durable."""
    c.aliases.clear()
    c.owners.clear()
    c.keys = {key: id for key, id in c.keys.items() if id not in c.calls or c.calls[id].keep}
    c.calls = {id: call for id, call in c.calls.items() if call.keep}
    for call in c.calls.values():
        call.also, call.instance = (), WAITS
