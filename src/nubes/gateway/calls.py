"""Calls that HTTP requests make: handed to the control plane directly, and waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple

from nubes import ids
from nubes.drivers.local import payload
from nubes.drivers.local.control_plane import ControlPlane
from nubes.drivers.local.sessions import withdraw
from nubes.functions import events as e
from nubes.functions.events import SUCCEEDED
from nubes.functions.spec import FunctionSpec, Web
from nubes.gateway import plain
from nubes.gateway.problems import Problem, of_error, of_outcome
from nubes.kernel.errors import NubesError, Unavailable


class Outcome(NamedTuple):
    status: str
    reason: str
    output: bytes


class Target(NamedTuple):
    """What is called: a function, or a method of a class, whose instances are made with `variant`."""

    spec: FunctionSpec
    method: str = ""
    variant: str = ""

    @property
    def web(self) -> Web | None:
        """How it is reached over HTTP, if it is."""
        return self.spec.endpoints.get(self.method) if self.method else self.spec.web

    @property
    def label(self) -> str:
        return f"{self.spec.name}.{self.method}" if self.method else self.spec.name


def lookup(specs: Mapping[str, FunctionSpec], app: str, name: str) -> Target | None:
    """`app/function` or `app/Class.method`."""
    spec = specs.get(f"{app}/{name}")
    if spec is not None and spec.kind == "function":
        return Target(spec)
    whole, _, method = name.rpartition(".")
    holder = specs.get(f"{app}/{whole}")
    return Target(holder, method) if holder is not None and method in holder.methods else None


def find(specs: Mapping[str, FunctionSpec], app: str, name: str) -> Target:
    """What `lookup` finds. A 404 names those that exist."""
    target = lookup(specs, app, name)
    if target is not None and target.web is not None and target.web.kind == "asgi":
        raise Problem(
            400, f"{target.label!r} is a web app: it answers at /{target.label}/.", param="function", code="is_web_app"
        )
    if target is not None:
        return target
    spec = specs.get(f"{app}/{name}")
    if spec is not None:
        there = ", ".join(f"{spec.name}.{m}" for m in spec.methods)
        raise Problem(
            404,
            f"{spec.name!r} is a class: call one of its methods. There are: {there}.",
            param="function",
            code="not_found",
        )
    there = (
        ", ".join(names(specs, app)) or ", ".join(names(specs)) or "none yet; deploy an app with `nubes deploy app.py`"
    )
    raise Problem(
        404, f"No function {f'{app}/{name}'!r} is deployed. There are: {there}.", param="function", code="not_found"
    )


def names(specs: Mapping[str, FunctionSpec], app: str = "") -> list[str]:
    """Everything that can be called, methods one by one; web apps cannot."""
    mine = [s for s in specs.values() if not app or s.name.startswith(app + "/")]
    targets = [Target(s, method) for s in mine for method in (s.methods if s.kind == "class" else ("",))]
    return [t.label for t in targets if t.web is None or t.web.kind == "function"]


def variant_of(parameters: dict[str, Any]) -> str:
    """The text that stands for a class's parameters, the same as Python callers make of them."""
    return "#" + payload.dumps(((), parameters), None).hex() if parameters else ""


class Waiting:
    """A call under way, and the sink for what becomes of it."""

    def __init__(self, plane: ControlPlane, call: int = 0) -> None:
        self.plane = plane
        self.call = call or ids.new()
        self.done: asyncio.Future[Outcome] = plane.loop.create_future()
        self._items: asyncio.Queue[bytes | None] = asyncio.Queue()

    def result(self, call: int, status: str, reason: str, output: bytes, released: bool = False) -> None:
        if not self.done.done():
            self.done.set_result(Outcome(status, reason, output))
            self._items.put_nowait(None)
        else:
            discard(output)

    def item(self, call: int, output: bytes) -> None:
        self._items.put_nowait(output)

    def printed(self, call: int, function: str, stream: str, text: str) -> None:
        """What it prints goes to the log store, not to HTTP."""

    def submit(
        self, target: Target, args: Sequence[Any], kwargs: Mapping[str, Any], keep: bool = False, key: str = ""
    ) -> None:
        """Hands the call in. Raises `Problem` if it is not accepted."""
        data = payload.dumps((tuple(args), dict(kwargs)), None)
        kept = data if keep else b""
        event = e.Submitted(self.call, target.spec.name, keep, target.method, target.variant, (), key, kept)
        try:
            self.plane.submit(event, data, self)
        except NubesError as error:
            raise of_error(error) from None

    async def accepted(self, target: Target, key: str) -> None:
        """Returns once a durable call would survive a crash. With a known key, it is the first call of that key."""
        if self.plane.sinks.pop(self.call, None) is None:  # it was refused
            outcome = await self.done
            raise of_outcome(*outcome)
        own = self.call
        if key:
            pool = target.spec.name + target.variant
            self.call = self.plane.controller.keys.get((pool, key), self.call)
        safe: asyncio.Future[Unavailable | None] = self.plane.loop.create_future()

        def settle(trouble: Unavailable | None = None) -> None:
            if not safe.done():
                safe.set_result(trouble)

        self.plane.journal.when_safe(settle, lambda why: settle(Unavailable(why, withdraw(self.plane, own))))
        trouble = await safe
        if trouble is not None:
            raise of_error(trouble)

    async def items(self) -> AsyncIterator[bytes]:
        """What a generator yields, as it comes."""
        while (item := await self._items.get()) is not None:
            yield item

    def cancel(self) -> None:
        """Nobody waits any more."""
        if not self.done.done():
            self.plane.feed(e.Cancelled(self.call))
        self.plane.sinks.pop(self.call, None)
        if not self.done.done():
            self.done.cancel()
        while not self._items.empty():
            discard(self._items.get_nowait() or b"")


def discard(output: bytes) -> None:
    """Gives back the shared memory of a result that nobody reads."""
    segment = payload.segment_of(output)
    if segment and not payload.is_object(segment):
        payload.discard(segment)


async def value(outcome: Outcome, target: str, tell: bool = True) -> bytes:
    """The result of a call as JSON. Raises `Problem` if it failed, or if it is nothing that JSON can say."""
    if outcome.status != SUCCEEDED:
        raise of_outcome(*outcome, tell=tell)
    return await item_json(outcome.output, target)


async def item_json(output: bytes, target: str) -> bytes:
    try:
        if plain.is_quick(output):
            return plain.to_json(output)
        return await asyncio.get_running_loop().run_in_executor(None, plain.to_json, output)
    except plain.NotPlain as error:
        raise Problem(
            422, f"{target} returned {error}, which is not JSON. Return numbers, text, lists, dicts or arrays.",
            code="result_not_json",
        ) from None  # fmt: skip
