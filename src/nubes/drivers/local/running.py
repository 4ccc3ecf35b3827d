"""The calls of an instance: one after the other, in batches, or in threads.

What is asynchronous stands in `nubes.drivers.local.tasks`, and only who needs it imports it: asyncio brings OpenSSL
with it, and every fork of a parent that holds them pays for that.
"""

from __future__ import annotations

import contextvars
import inspect
import time
from typing import TYPE_CHECKING, Any

from nubes.drivers.local import endings, payload, printed, wire

if TYPE_CHECKING:
    from nubes.drivers.local.instance import Instance


def serve(me: Instance, stream: wire.Stream) -> None:
    """Runs what the control plane sends until it says stop. Raises `ConnectionError` if it is gone."""
    spec = me.spec
    if spec.batching is not None or (spec.concurrency == 1 and not (spec.web and spec.web.kind == "asgi")):
        _serve(me, stream)
    elif any(me.method(name)[1] for name in spec.methods or ("",)):
        from nubes.drivers.local import tasks

        tasks.serve(me, stream)
    else:
        _serve_threads(me, stream)


def _serve(me: Instance, stream: wire.Stream) -> None:
    """One batch, or the calls of one frame one after the other, at a time."""
    recv = stream.recv
    while True:
        frame = recv()
        if frame[0] == wire.STOP:
            return
        if frame[0] != wire.RUN:
            continue
        _, calls, method, hop, keep, inputs = frame
        function, is_async = me.method(method)
        if me.spec.batching is not None:
            _run_batch(me, calls, function, keep, inputs)
        elif is_async:
            from nubes.drivers.local import tasks

            for call, data in zip(calls, inputs, strict=True):
                tasks.finish(tasks.run(me, call, function, hop, keep, data))
        else:
            for call, data in zip(calls, inputs, strict=True):
                _run(me, call, function, hop, keep, data)
        if me.spec.single_use:
            return


def _run(me: Instance, call: int, function: Any, hop: bool, keep: bool, data: bytes) -> None:
    token = printed.call.set(call)
    started = time.monotonic()
    mapped = None
    try:
        value, mapped = payload.load_mapped(data)
        args, kwargs = ((value,), {}) if hop else value
        del value
        result = function(*args, **kwargs)
        if inspect.isgenerator(result):
            for item in result:
                me.send(wire.YIELDED, call, payload.dumps(item, me.segments))
            result = None
        took = time.monotonic() - started
        out = payload.dumps(result, me.place(keep))
        ok, pushed = True, ""
        del result
        args = kwargs = None
    except BaseException as error:
        took = time.monotonic() - started
        ok, out, pushed = False, endings.failure(error), endings.backpressure(error)
        args = kwargs = None
        del error
    endings.flush()
    me.send(wire.DONE, call, ok, took, out, pushed, _release(mapped))
    printed.call.reset(token)


def _release(mapped: Any) -> bool:
    """Whether nothing refers to the arguments' shared memory any more, so that its owner may use it again."""
    if mapped is None:
        return True
    try:
        mapped.close()
    except BufferError:
        return False
    return True


def _run_batch(me: Instance, calls: list[int], function: Any, keep: bool, inputs: list[bytes]) -> None:
    """A batched function takes lists, one entry a call, and returns a list of the same length."""
    started = time.monotonic()
    token = printed.call.set(calls[0])
    try:
        loaded = [payload.loads(data) for data in inputs]
        args = [[one[0][position] for one in loaded] for position in range(len(loaded[0][0]))]
        kwargs = {key: [one[1][key] for one in loaded] for key in loaded[0][1]}
        results = function(*args, **kwargs)
        if inspect.iscoroutine(results):
            from nubes.drivers.local import tasks

            results = tasks.finish(results)
        if not isinstance(results, (list, tuple)) or len(results) != len(calls):
            size = len(results) if isinstance(results, (list, tuple)) else type(results).__name__
            raise TypeError(
                f"A batched function returns a list with one result for each of its {len(calls)} inputs, not {size}."
            )
        outputs = [payload.dumps(result, me.place(keep)) for result in results]
        ok, pushed = True, ""
    except BaseException as error:
        ok, pushed = False, endings.backpressure(error)
        outputs = [endings.failure(error)] * len(calls)
    took = (time.monotonic() - started) / len(calls)
    endings.flush()
    for call, out in zip(calls, outputs, strict=True):
        me.send(wire.DONE, call, ok, took, out, pushed, False)
    printed.call.reset(token)


def _serve_threads(me: Instance, stream: wire.Stream) -> None:
    """Several calls at once of a plain function: a thread each."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(me.spec.concurrency) as pool:
        while True:
            frame = stream.recv()
            if frame[0] == wire.STOP:
                return
            if frame[0] == wire.RUN:
                _, calls, method, hop, keep, inputs = frame
                function, _ = me.method(method)
                pool.submit(contextvars.Context().run, _run, me, calls[0], function, hop, keep, inputs[0])
