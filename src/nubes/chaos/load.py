"""A client process: calls the app in every way there is, and writes down what it asks and what it is told.

`python -m nubes.chaos.load FOLDER NAME SEED`: until SIGTERM. What it was about to ask is on disk before it is asked,
with the id that the call will have: so that even of what a killed client asked, the auditor knows.
"""

from __future__ import annotations

import random
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nubes
from nubes import client as clients
from nubes import ids
from nubes.chaos.evidence import (
    ACCEPTED,
    DONE,
    NOT_FOUND,
    NOT_YET,
    REFUSED,
    UNKNOWN,
    Ask,
    Told,
    large,
    shown,
)
from nubes.chaos.journal import Journal
from nubes.client import Client, Target
from nubes.kernel.errors import (
    CallCancelled,
    CallFailed,
    CallTimeout,
    InstanceDied,
    NubesError,
    Overloaded,
    Unavailable,
)

QUEUE = DICT = "chaos"
PATIENCE_S = 10.0  # how long a fetch waits
ITEMS_OF_MAP = 8


class Caller:
    """One client's operations."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.ledger = str(folder / "ledger")
        self.journal = Journal(folder / "journals" / f"{name}.jsonl")
        self._op = 0
        self._next: deque[Ask] = deque()  # what the ids that are drawn next are for
        self._draw = ids.new
        ids.new = self._new_id

    def _new_id(self) -> int:
        """Every id that the client library draws for a call is on disk, with what it is for, before it is used."""
        id = self._draw()
        if self._next:
            ask = self._next.popleft()
            self.journal.write(
                Ask(ask.client, ask.op, time.monotonic(), ask.kind, id, ask.function, ask.token, ask.key)
            )
        return id

    def ask(self, kind: str, call: int = 0, function: str = "", token: str = "", key: str = "") -> Ask:
        self._op += 1
        return Ask(self.name, self._op, time.monotonic(), kind, call, function, token, key)

    def told(self, ask: Ask, status: str, said: object = "", call: int = 0) -> str:
        self.journal.write(Told(self.name, ask.op, time.monotonic(), status, shown(said), call))
        return status

    # -- calls ---------------------------------------------------------------------------------------------------

    def arguments(self, function: str, token: str, chance: random.Random) -> tuple[Any, ...]:
        if function == "work":
            return self.ledger, token, chance.choice((0.0, 0.0, 0.01, 0.05, 0.3))
        return (self.ledger, token, large(token)) if function == "large" else (self.ledger, token)

    def client(self) -> Client:
        return clients.connect(start=False)

    def remote(self, function: str, token: str, args: tuple[Any, ...]) -> None:
        ask = self.ask("remote", function=f"chaos/{function}", token=token)
        self._next = deque([ask])
        self._outcome(ask, lambda: self.client().remote(Target(ask.function), args, {}))

    def map(self, tokens: list[str]) -> None:
        asks = [self.ask("map", function="chaos/work", token=token) for token in tokens]
        self._next = deque(asks)
        inputs: list[tuple[tuple[Any, ...], dict[str, Any]]] = [((self.ledger, token, 0.01), {}) for token in tokens]
        results = self._mapped(inputs)
        for n, ask in enumerate(asks):
            if self._outcome(ask, lambda: next(results)) == UNKNOWN:
                for other in asks[n + 1 :]:
                    self.told(other, UNKNOWN)
                return

    def _mapped(self, inputs: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> Iterator[Any]:
        yield from self.client().map(Target("chaos/work"), inputs, True, True)

    def spawn(self, function: str, token: str, args: tuple[Any, ...], key: str) -> tuple[str, int]:
        """(how it ended, the call's id)."""
        ask = self.ask("spawn", function=f"chaos/{function}", token=token, key=key)
        self._next = deque([ask])
        try:
            call = self.client().spawn(Target(ask.function, key=key), args, {})
        except Exception as error:
            return self.told(ask, *outcome_of(error)), 0
        return self.told(ask, ACCEPTED, call=call), call

    def fetch(self, call: int, timeout_s: float = PATIENCE_S) -> str:
        ask = self.ask("fetch", call=call)
        self.journal.write(ask)
        return self._outcome(ask, lambda: self.client().fetch(call, timeout_s))

    def cancel(self, call: int) -> None:
        ask = self.ask("cancel", call=call)
        self.journal.write(ask)
        try:
            self.client().cancel(call)
            self.told(ask, DONE)
        except Exception as error:
            self.told(ask, *outcome_of(error))

    def _outcome(self, ask: Ask, do: Callable[[], Any]) -> str:
        try:
            value = do()
        except Exception as error:
            value = error
        if isinstance(value, Exception):
            return self.told(ask, *outcome_of(value))
        return self.told(ask, "SUCCEEDED", value)

    # -- stores --------------------------------------------------------------------------------------------------

    def store(self, kind: str, token: str = "", key: str = "") -> None:
        queue = nubes.Queue.from_name(QUEUE, create_if_missing=True)
        table = nubes.Dict.from_name(DICT, create_if_missing=True)
        ask = self.ask(kind, token=token, key=key)
        self.journal.write(ask)
        try:
            if kind == "put":
                said = queue.put(token, timeout="5s") or ""
            elif kind == "set":
                said = "" if table.put(key, token) else "not set"
            elif kind == "look":
                said = table.get(key, "")
            else:
                said = queue.get(block=False)
            self.told(ask, NOT_YET if said is None else DONE, said or "")
        except Exception as error:
            self.told(ask, *outcome_of(error))


def outcome_of(error: Exception) -> tuple[str, str]:
    """(status, said): how an operation ended that raised."""
    if isinstance(error, CallCancelled):
        return "CANCELLED", ""
    if isinstance(error, CallTimeout):
        return (NOT_YET, "") if "has not ended yet" in str(error) else ("TIMED_OUT", "")
    if isinstance(error, Overloaded):
        return REFUSED, str(error)
    if isinstance(error, Unavailable):
        done = "was done all the same" in str(error)
        refused = not done and any(words in str(error) for words in ("was not accepted", "cannot be written"))
        return REFUSED if refused else UNKNOWN, str(error)
    if isinstance(error, InstanceDied):
        return "FAILED", "lost"
    if isinstance(error, CallFailed) and "No call of this id is known" in str(error):
        return NOT_FOUND, ""
    if isinstance(error, NubesError) and not isinstance(error, CallFailed):
        return UNKNOWN, f"{type(error).__name__}: {error}"
    return "FAILED", f"{type(error).__name__}: {error}"


class Load:
    """What one client does, one thing after the other, as its seed says."""

    def __init__(self, caller: Caller, seed: str) -> None:
        self.caller = caller
        self.chance = random.Random(seed)
        self.number = 0
        self.spawned: list[int] = []
        self.over = False

    def token(self) -> str:
        self.number += 1
        return f"{self.caller.name}-{self.number}"

    def step(self) -> None:
        kinds = ("remote", "spawn", "key", "fetch", "map", "cancel", "put", "take", "set", "look")
        (kind,) = self.chance.choices(kinds, (20, 15, 15, 20, 3, 3, 8, 8, 5, 5))
        function = self.chance.choices(("work", "large", "fail"), (17, 1, 2))[0]
        caller, token = self.caller, self.token()
        args = caller.arguments(function, token, self.chance)
        if kind == "remote":
            caller.remote(function, token, args)
        elif kind == "spawn":
            self._remember(caller.spawn(function, token, args, "")[1])
        elif kind == "key":
            self._insist(function, token, args)
        elif kind == "map":
            caller.map([f"{token}.{n}" for n in range(ITEMS_OF_MAP)])
        elif kind in ("fetch", "cancel"):
            if self.spawned:
                call = self.chance.choice(self.spawned[-50:])
                caller.cancel(call) if kind == "cancel" else caller.fetch(call)
        else:
            caller.store(kind, token, f"{caller.name}/{self.chance.randrange(4)}")

    def _insist(self, function: str, token: str, args: tuple[Any, ...]) -> None:
        """With a key, a client may say it again until it is told that it was accepted; and once more, at times."""
        while not self.over:
            status, call = self.caller.spawn(function, token, args, f"key-{token}")
            self._remember(call)
            if status == ACCEPTED and self.chance.random() < 0.7:
                return
            time.sleep(0.1)

    def _remember(self, call: int) -> None:
        if call:
            self.spawned.append(call)


def main() -> None:
    folder, name, seed = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    load = Load(Caller(folder, name), f"{seed}/{name}")

    def end(*_: object) -> None:
        load.over = True

    signal.signal(signal.SIGTERM, end)
    while not load.over:
        before = time.monotonic()
        load.step()
        time.sleep(max(0.0, 0.01 - (time.monotonic() - before)))


if __name__ == "__main__":
    main()
