"""The calls of an instance as tasks of an event loop: those of async functions, and of ASGI apps."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from nubes.drivers.local import endings, payload, printed, wire

if TYPE_CHECKING:
    from nubes.drivers.local.instance import Instance

_runner = asyncio.Runner()  # for calls that come one after the other: what they leave in the loop stays


def finish(coroutine: Coroutine[Any, Any, Any], alone: bool = False) -> Any:
    """Runs one coroutine to its end, in the loop of this process or in one of its own, which is closed then."""
    return asyncio.run(coroutine) if alone else _runner.run(coroutine)


def serve(me: Instance, stream: wire.Stream) -> None:
    """As `nubes.drivers.local.running.serve`, but several calls at once."""
    finish(_serve(me, stream))


async def _serve(me: Instance, stream: wire.Stream) -> None:
    """Several calls at once of an async function, or of an ASGI app: a task each."""
    loop = asyncio.get_running_loop()
    tasks: dict[int, asyncio.Task[None]] = {}
    while True:
        frame = await loop.run_in_executor(None, stream.recv) if not stream.waiting() else stream.recv()
        if frame[0] == wire.STOP:
            break
        if frame[0] == wire.INTERRUPT and frame[1] in tasks:
            tasks[frame[1]].cancel()
        elif frame[0] == wire.RUN:
            _, calls, method, hop, keep, inputs = frame
            function, _ = me.method(method)
            task = loop.create_task(run(me, calls[0], function, hop, keep, inputs[0]))
            tasks[calls[0]] = task
            task.add_done_callback(lambda _, call=calls[0]: tasks.pop(call, None))  # type: ignore[misc]
    if tasks:
        await asyncio.gather(*tasks.values(), return_exceptions=True)


async def run(me: Instance, call: int, function: Any, hop: bool, keep: bool, data: bytes) -> None:
    printed.call.set(call)
    started = time.monotonic()
    try:
        value = await asyncio.to_thread(payload.loads, data) if payload.is_far(data) else payload.loads(data)
        args, kwargs = ((value,), {}) if hop else value
        result = function(*args, **kwargs)
        if inspect.isasyncgen(result):
            async for item in result:
                me.send(wire.YIELDED, call, payload.dumps(item, me.segments))
            result = None
        elif inspect.isgenerator(result):
            for item in result:
                me.send(wire.YIELDED, call, payload.dumps(item, me.segments))
            result = None
        elif inspect.isawaitable(result):
            result = await result
        took = time.monotonic() - started
        place = me.place(keep)
        out = await asyncio.to_thread(payload.dumps, result, place) if place.far else payload.dumps(result, place)
        ok, pushed = True, ""
    except BaseException as error:
        took = time.monotonic() - started
        ok, out, pushed = False, endings.failure(error), endings.backpressure(error)
    endings.flush()
    me.send(wire.DONE, call, ok, took, out, pushed, False)
