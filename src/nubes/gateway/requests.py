"""What HTTP requests say: bodies, arguments and query strings, checked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, NamedTuple, TypeVar

import msgspec
from starlette.requests import Request

from nubes.gateway.problems import Problem
from nubes.kernel.errors import UsageError
from nubes.kernel.units import seconds
from nubes.signatures import KEYWORD, POSITIONAL, Signature, convert

MAX_BODY_BYTES = 64 << 20
_FIELDS = {"args", "kwargs", "parameters"}

T = TypeVar("T")


class Arguments(NamedTuple):
    args: list[Any]
    kwargs: dict[str, Any]
    parameters: dict[str, Any]  # of the class whose method is called


async def body_of(request: Request) -> bytes:
    """The whole body. Raises `Problem` if it is too large."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY_BYTES:
            limit = MAX_BODY_BYTES >> 20
            raise Problem(
                413,
                f"The body is larger than {limit} MiB. Put large data in a volume and pass its path.",
                code="body_too_large",
            )
        parts.append(part)
    return b"".join(parts)


def parse(body: bytes) -> Any:
    """A JSON body; None if there is none."""
    if not body.strip():
        return None
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem(400, f"The body is not JSON: {error}.", param="body", code="not_json") from None


async def arguments(request: Request) -> Arguments:
    """`{"args": [...], "kwargs": {...}}`; or an object of keyword arguments, a list of arguments, or one argument."""
    given = parse(await body_of(request))
    if given is None:
        return Arguments([], {}, {})
    if isinstance(given, dict) and given and set(given) <= _FIELDS:
        args, kwargs, parameters = given.get("args", []), given.get("kwargs", {}), given.get("parameters", {})
        for name, value, kind in (("args", args, list), ("kwargs", kwargs, dict), ("parameters", parameters, dict)):
            if not isinstance(value, kind):
                what = "a list" if kind is list else "an object"
                raise Problem(400, f"{name!r} must be {what}.", param=name, code="invalid_type")
        return Arguments(args, kwargs, parameters)
    if isinstance(given, dict):
        return Arguments([], given, {})
    return Arguments(given if isinstance(given, list) else [given], {}, {})


def bound(signature: Signature | None, given: Arguments) -> None:
    """Checks arguments against a signature, as far as it is known. Raises `Problem` that names the parameter."""
    if signature is None:
        return
    places = [p for p in signature.parameters if p.kind == POSITIONAL]
    named = [p for p in signature.parameters if p.kind in (POSITIONAL, KEYWORD)]
    takes = ", ".join(p.name for p in named) or "none"
    if len(given.args) > len(places) and not any(p.kind == "many" for p in signature.parameters):
        raise Problem(
            400,
            f"{len(given.args)} positional arguments are too many. It takes: {takes}.",
            param="args",
            code="too_many_arguments",
        )
    filled = {p.name for p in places[: len(given.args)]}
    for name in given.kwargs:
        if name in filled:
            raise Problem(400, f"{name!r} is given twice.", param=name, code="given_twice")
        if signature.find(name) is None and not signature.open:
            raise Problem(
                400, f"There is no parameter {name!r}. It takes: {takes}.", param=name, code="unknown_parameter"
            )
    for p in named:
        if p.required and p.name not in filled and p.name not in given.kwargs:
            raise Problem(400, f"{p.name!r} is missing. It takes: {takes}.", param=p.name, code="missing_parameter")


def from_query(request: Request, signature: Signature | None) -> dict[str, Any]:
    """Keyword arguments from a query string, each of its parameter's type; names it does not know are left out."""
    kwargs: dict[str, Any] = {}
    for name in request.query_params:
        values = request.query_params.getlist(name)
        parameter = signature.find(name) if signature else None
        if signature is not None and parameter is None and not signature.open:
            continue
        kind = parameter.type if parameter else Any
        try:
            many = getattr(kind, "__origin__", kind) is list
            kwargs[name] = _many(values, kind) if many else convert(values[-1], kind)
        except ValueError as error:
            raise Problem(400, f"{name!r} is {values[-1]!r}: {error}.", param=name, code="invalid_value") from None
    return kwargs


def _many(values: list[str], kind: Any) -> list[Any]:
    inner = getattr(kind, "__args__", (Any,))[0]
    return [convert(value, inner) for value in values]


def timeout_s(request: Request, default: float | None = None) -> float | None:
    """`?timeout=` in seconds or as "5m"."""
    text = request.query_params.get("timeout")
    if text is None:
        return default
    try:
        return float(text) if text.replace(".", "", 1).isdigit() else seconds(text, "timeout")
    except (UsageError, ValueError) as error:
        raise Problem(400, str(error), param="timeout", code="invalid_value") from None


async def or_gone(request: Request, future: Awaitable[T], timeout: float | None = None) -> T:
    """The result of `future`; `ConnectionError` if the client hangs up first, `TimeoutError` if time runs out."""
    task = asyncio.ensure_future(future)
    gone = asyncio.ensure_future(_gone(request))
    try:
        done, _ = await asyncio.wait({task, gone}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if task in done:
            return task.result()
        if gone in done:
            raise ConnectionError("the client hung up")
        raise TimeoutError
    finally:
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
