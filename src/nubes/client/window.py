"""The calls of one map: which to send next, and which results to give out. It knows nothing of sockets."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from nubes import ids
from nubes.client.arguments import Arguments
from nubes.client.connection import Target
from nubes.client.outcomes import yields
from nubes.client.printing import show
from nubes.drivers.local import wire

Inputs = Iterable[tuple[tuple[Any, ...], dict[str, Any]]]

SIZE = 2_000  # calls of a map that may be under way at once
_BURST = 64  # calls sent together


class Window:
    """At most `SIZE` inputs are taken ahead of the results given out: `burst` sends, `take` receives."""

    def __init__(self, target: Target, inputs: Inputs, arguments: Arguments, ordered: bool) -> None:
        self.target = target
        self.arguments = arguments
        self.ordered = ordered
        self.under_way: dict[int, tuple[int, bytes]] = {}  # call -> position, and its arguments if in shared memory
        self._inputs = iter(inputs)
        self._waiting: dict[int, list[Any]] = {}  # position -> a result whose turn has not come
        self._sent = self._given = 0
        self._exhausted = False

    @property
    def has_room(self) -> bool:
        """Whether a burst may be sent now."""
        return not self._exhausted and len(self.under_way) + len(self._waiting) < SIZE

    def burst(self) -> dict[int, bytes]:
        """The requests of the next inputs, by the ids of their calls; none if there are no more."""
        requests = {}
        for given in itertools.islice(self._inputs, _BURST):
            data = self.arguments.dumps(given)
            call = ids.new()
            self.under_way[call] = (self._sent, data if data[:1] == b"S" else b"")
            self._sent += 1
            requests[call] = self.target.request(call, False, data)
        self._exhausted = len(requests) < _BURST
        return requests

    def take(self, frame: list[Any]) -> Sequence[list[Any]]:
        """The results to give out after this frame, in the order of their inputs if that was wanted.

        Raises `UsageError` if the function is a generator.
        """
        entry = self.under_way.pop(frame[1], None) if frame[0] == wire.RESULT else None
        if entry is None:
            if frame[0] == wire.YIELD and frame[1] in self.under_way:
                raise yields()
            show(frame)
            return ()
        position, data = entry
        if data:
            self.arguments.settle(data, frame[5])
        if not self.ordered:
            return (frame,)
        waiting = self._waiting
        waiting[position] = frame
        ready = []
        while self._given in waiting:
            ready.append(waiting.pop(self._given))
            self._given += 1
        return ready
