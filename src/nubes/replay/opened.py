"""A log that can be walked through, forwards and backwards, with the state at every step."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nubes.functions import events as e
from nubes.functions import invariants
from nubes.functions.controller import Functions
from nubes.kernel.errors import UsageError
from nubes.kernel.fingerprint import fingerprint
from nubes.kernel.message import Codec

if TYPE_CHECKING:
    from nubes.replay.why import Explanation

_decode = Codec(e.EVENTS).decode


class Opened:
    """`state` is the fold of all records before number `number`; `event`, at time `now`, comes next, None at the end.

    `step()` takes it and returns the commands that follow; `go(n)` goes to any record; `why(call)` explains a call;
    `hash` is the state's; `wrong()` lists what should hold of the state and does not.
    """

    def __init__(self, state: Functions, first: int, records: Sequence[bytes]) -> None:
        self._records = records
        self._start = pickle.dumps(state, 5)
        self.first = first
        self.count = first + len(records)
        self.number = first
        self.state = state

    def __repr__(self) -> str:
        return f"<before record {self.number} of {self.first} to {self.count}: {self.event}>"

    @property
    def event(self) -> Any:
        return self._next()[1]

    @property
    def now(self) -> float:
        return self._next()[0]

    def _next(self) -> tuple[float, Any]:
        if self.number < self.count:
            return _decode(self._records[self.number - self.first])
        return (_decode(self._records[-1])[0] if self._records else 0.0), None

    def step(self, count: int = 1) -> list[Any]:
        """Takes the next `count` events; returns the commands of the last."""
        commands: list[Any] = []
        for _ in range(count):
            commands = self.advance()
        return commands

    def advance(self) -> list[Any]:
        now, event = self._next()
        if event is None:
            raise UsageError("The log is over.", f"go({self.first}) goes to its beginning.")
        self.number += 1
        return self.state.handle(event, now)

    def go(self, number: int) -> Opened:
        """To the state before that record."""
        if not self.first <= number <= self.count:
            raise UsageError(f"There is no record {number}.", f"There are {self.first} to {self.count}, the end.")
        if number < self.number:
            self.state, self.number = pickle.loads(self._start), self.first
        while self.number < number:
            self.advance()
        return self

    def back(self, count: int = 1) -> Opened:
        return self.go(self.number - count)

    def why(self, call: int | str) -> Explanation:
        """The chain of a call in the whole log. Raises `UsageError` if the log's beginning is gone."""
        from nubes import ids
        from nubes.replay.why import why

        if self.first:
            raise UsageError("The beginning of this log is gone: a call cannot be explained from it.")
        number = ids.parse(call) if isinstance(call, str) else call
        return why([_decode(record) for record in self._records], number)

    @property
    def hash(self) -> str:
        return fingerprint(self.state)

    def wrong(self) -> list[str]:
        return invariants.check(self.state)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        from nubes.replay.showing import plain

        state = self.state
        return {
            "record": self.number, "first": self.first, "count": self.count, "at": self.now,
            "event": plain(self.event), "hash": self.hash, "wrong": self.wrong(),
            "policies": {seam: policy.text for seam, policy in state.policies.items()},
            "machines": {
                id: {"cpu_used": m.cpu_used, "memory_used": m.memory_used} for id, m in state.machines.items()
            },
            "functions": {
                f.name: {"queued": f.queued, "instances": len(f.instances)} for f in state.functions.values()
            },
            "calls": len(state.calls), "answers": len(state.results),
        }  # fmt: skip
