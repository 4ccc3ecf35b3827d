"""The client of simulated processes: what `nubes.client.Client` does, on a plane of this process, in virtual time."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

from nubes.client.connection import Target
from nubes.client.outcomes import not_ended, outcome, outcome_or_error, value, yields
from nubes.client.window import Inputs
from nubes.drivers.local import payload, wire
from nubes.functions import events as e
from nubes.functions.events import FAILED
from nubes.kernel.errors import NubesError, Unavailable, UsageError
from nubes.storm.asynchronous import AsyncSimulatedClient
from nubes.storm.inbox import Inbox

if TYPE_CHECKING:
    from nubes.storm.world import World

BURST = 64  # calls of a map that are sent as one operation
AWAY = "No control plane answers."


class SimulatedClient:
    """The methods of `nubes.client.Client`. Every one of them is one or several operations of the task it is called in.

    Raises `UsageError` where it is called from a thread that the user's code made.
    """

    path = "storm"
    shared = ""
    pid = 0

    def __init__(self, world: World) -> None:
        self.world = world
        self.arguments = self
        self.by_value = False
        self.aio = AsyncSimulatedClient(self)

    @property
    def folder(self) -> str:
        raise UsageError("Volumes are not part of a storm.", "Keep what matters in a Dict or a Queue.")

    # -- what is asked -------------------------------------------------------------------------------------------------

    def ask(self, name: str, /, **arguments: Any) -> Any:
        world = self.world
        if name == "functions":
            return world.functions()
        if name != "store":
            return None
        operation, given = arguments["operation"], arguments["arguments"]
        with world.operation(lambda: _told(operation, given)) as one:
            answer = self._store(operation, given)
            one.gave(answer)
        return answer

    def _store(self, operation: str, given: dict[str, Any]) -> Any:
        stores = self.world.stores
        if operation == "queue_get":
            return self._when("queue_take", given, "room", "items")
        if operation == "queue_put":
            return self._when("queue_append", given, "items", "room")
        answer = stores.do(operation, given)
        if operation in ("queue_clear", "store_delete"):
            self.world.stir()
        return answer

    def _when(self, operation: str, given: dict[str, Any], stirs: str, waits_for: str) -> Any:
        """Tries until there is a result or the time is over; whoever waits for what this changes looks again."""
        world, timeout = self.world, given["timeout"]
        until = None if timeout is None else world.tasks.now + timeout
        while True:
            answer = world.stores.do(operation, given)
            if answer:
                world.stir()
                return answer
            if until is not None and world.tasks.now >= until:
                return answer
            world.wait_for_stir(f"{waits_for} of queue {given['name']!r}", until)

    # -- calls ---------------------------------------------------------------------------------------------------------

    def _dumps(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        try:
            return payload.dumps((args, kwargs), None)
        except Exception as error:
            raise UsageError(
                f"An argument cannot be sent to the function: {type(error).__name__}: {error}.",
                "Pass plain data, arrays or importable classes; open files, locks and sockets stay where they are.",
            ) from error

    def _submit(self, target: Target, data: bytes, keep: bool, inbox: Inbox) -> int:
        call, owner = self.world.new_call(target.function)
        event = e.Submitted(
            call, target.function, keep, target.method, target.variant, target.route, target.key,
            data if keep else b"", 0 if keep else owner,
        )  # fmt: skip
        try:
            self.world.plane.submit(event, data, inbox)
        except NubesError as error:
            kind = "unavailable: " if isinstance(error, Unavailable) else ""
            inbox.result(call, FAILED, kind + str(error), b"")
        return call

    def remote(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        data = self._dumps(args, kwargs)
        with self.world.inbox() as inbox:
            with self.world.operation(lambda: _call("calls", target, args, kwargs)):
                self._submit(target, data, False, inbox)
            with self.world.operation(lambda: f"has the answer of {_name(target)}", reaches=False):
                frame = inbox.get(f"the answer of {_name(target)}")
        if frame[0] == wire.YIELD:
            raise yields()
        return outcome(frame)

    def stream(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Generator[Any, None, Any]:
        data = self._dumps(args, kwargs)
        with self.world.inbox() as inbox:
            with self.world.operation(lambda: _call("calls", target, args, kwargs)):
                self._submit(target, data, False, inbox)
            while True:
                with self.world.operation(lambda: f"hears of {_name(target)}", reaches=False):
                    frame = inbox.get(f"the items of {_name(target)}")
                if frame[0] != wire.YIELD:
                    return outcome(frame)
                yield value(frame[2])

    def spawn(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        data = self._dumps(args, kwargs)
        with self.world.operation(lambda: _call("spawns", target, args, kwargs)), self.world.inbox() as inbox:
            call = self._submit(target, data, True, inbox)
            plane = self.world.plane
            if plane.sinks.pop(call, None) is None:  # it was refused at once
                return int(outcome(inbox.get("to be told")))
            keys = plane.controller.keys
            return keys.get((target.function + target.variant, target.key), call) if target.key else call

    def fetch(self, call: int, timeout: float | None = None) -> Any:
        tasks = self.world.tasks
        until = None if timeout is None else tasks.now + timeout
        with self.world.operation(lambda: "fetches a result", reaches=False) as one:
            while True:
                try:
                    frame = self._fetched(call, until)
                    break
                except Unavailable:  # it is patient, as its answer is kept
                    if until is not None and tasks.now + 1.0 > until:
                        raise
                    tasks.sleep(1.0)
            one.gave(frame[2])
        return outcome(frame)

    def _fetched(self, call: int, until: float | None) -> list[Any]:
        self.world.reach()
        plane = self.world.plane
        with self.world.inbox() as inbox:
            if not plane.watch(call, inbox):
                return [wire.RESULT, call, FAILED, "No call of this id is known.", b"", False]
            frame = inbox.get("a result", until)
            if frame[0] == -1:
                plane.unwatch(call, inbox)
                raise not_ended(call)
        return frame

    def cancel(self, call: int, terminate: bool = False) -> None:
        with self.world.operation(lambda: "cancels a call"):
            self.world.plane.feed(e.Cancelled(call, terminate))

    def map(self, target: Target, inputs: Inputs, ordered: bool, return_exceptions: bool) -> Iterator[Any]:
        result = outcome_or_error if return_exceptions else outcome
        with self.world.inbox() as inbox:
            calls: list[int] = []
            rest = iter(inputs)
            while burst := list(itertools.islice(rest, BURST)):
                with self.world.operation(lambda: f"maps {_name(target)} over {len(burst)}"):
                    calls += [self._submit(target, self._dumps(*given), False, inbox) for given in burst]
            came: dict[int, list[Any]] = {}
            given_out = 0
            for _ in calls:
                with self.world.operation(lambda: f"has an answer of {_name(target)}", reaches=False):
                    frame = inbox.get(f"the answers of {_name(target)}")
                if frame[0] == wire.YIELD:
                    raise yields()
                if not ordered:
                    yield result(frame)
                    continue
                came[frame[1]] = frame
                while given_out < len(calls) and calls[given_out] in came:
                    yield result(came.pop(calls[given_out]))
                    given_out += 1

    def close(self) -> None:
        """Nothing is held."""


def _name(target: Target) -> str:
    name = target.function.partition("/")[2]
    return f"{name}.{target.method}" if target.method else name


def _call(verb: str, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    given = [repr(one) for one in args] + [f"{name}={one!r}" for name, one in kwargs.items()]
    return f"{verb} {_name(target)}({', '.join(given)})"


def _told(operation: str, given: dict[str, Any]) -> str:
    """An operation on a dict or queue, as the user wrote it."""
    kind, _, verb = operation.partition("_")
    told = [repr(payload.loads(given["key"]))] if "key" in given else []
    told += [f"{payload.loads(key)!r}: {payload.loads(one)!r}" for key, one in given.get("pairs", ())]
    told += [repr(payload.loads(one)) for one in given.get("values", ())]
    if given.get("skip"):
        told.append("skip_if_exists=True")
    verb = given.get("what", verb)
    return f"{kind} {given.get('name', '')!r}: {verb} {', '.join(told)}".rstrip()
