"""An instance: the process that runs one function's calls. It takes frames from one socket and answers on it."""

from __future__ import annotations

import asyncio
import contextvars
import fcntl
import inspect
import io
import os
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from nubes.drivers.local import limits, loading, payload, wire
from nubes.functions.spec import FunctionSpec

_loaded: dict[str, Any] = {}  # function -> what a parent has loaded for its forks
_F_SETSIG = 10
_current: contextvars.ContextVar[int] = contextvars.ContextVar("call", default=0)


def preload(spec: FunctionSpec) -> None:
    """In a parent: loads the function's module, and for a class runs the enter hooks that may be shared by forks."""
    target = _raw(loading.load(spec.code))
    if spec.kind == "class" and not _parameters(target):
        target = _construct(target, b"")
        _hooks(target, "enter", snap=True)
    _loaded[spec.name] = target


def prime() -> None:
    """In a parent, before it parks: lives the whole life of an instance once, so that its first-use work is done.

    What a start touches first (method caches, allocator, code paths) then lies in memory that all forks share;
    without it
    each of them writes, and so copies, those pages anew.
    """
    kept = [os.dup(fd) for fd in (0, 1, 2)]
    streams = sys.stdout, sys.stderr
    ours, theirs = socket.socketpair()
    try:
        _loaded[""] = _nothing
        for _ in range(2):
            one = payload.dumps(((1,), {}), None)
            ours.sendall(wire.pack(wire.RUN, [0], "", False, False, [one]) + wire.pack(wire.STOP))
            run(theirs, FunctionSpec(name=""), _PRIMING)
            ours.recv(1 << 16)
    finally:
        del _loaded[""]
        sys.stdout, sys.stderr = streams
        for fd, copy in enumerate(kept):
            os.dup2(copy, fd)
            os.close(copy)
        ours.close()
        theirs.close()


def _nothing(value: Any) -> Any:
    print(end="")
    return value


_PRIMING: dict[str, Any] = {
    "started": 0.0,
    "lifeline": "",
    "shared": "",
    "objects": "",
    "limits": [],
    "output": os.devnull,
    "variant": b"",
    "asgi": False,
    "env": {},
    "volumes": {},
}


def lead_group(lifeline: str) -> None:
    """Makes the calling process lead a group of its own, which the kernel kills when the control plane is gone.

    `lifeline` is a FIFO that the control plane holds open for writing. Its signal goes to one group for each time the
    FIFO was opened, so every group opens it for itself.
    """
    os.setpgid(0, 0)
    own = os.open(lifeline, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(own, fcntl.F_SETOWN, -os.getpid())
    fcntl.fcntl(own, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(own, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)


class Instance:
    """State of one running instance."""

    def __init__(self, sock: socket.socket, spec: FunctionSpec, setting: dict[str, Any]) -> None:
        self.stream = wire.Stream(sock)
        self.spec = spec
        self.segments = payload.Segments(setting["shared"], keep=False)
        self.durable = payload.Segments(setting["objects"], durable=True)
        self.target: Any = None
        self.bound: dict[str, Any] = {}
        self.lock = threading.Lock()

    def send(self, *frame: Any) -> None:
        data = wire.pack(*frame)
        with self.lock:
            self.stream.send(data)

    def place(self, keep: bool) -> payload.Segments:
        """Where large results go: what must outlive a crash goes to disk."""
        return self.durable if keep else self.segments

    def method(self, name: str) -> Any:
        if name not in self.bound:
            bound = getattr(self.target, name) if name else self.target
            web = self.spec.endpoints.get(name)
            self.bound[name] = _asgi(bound) if web is not None and web.kind == "asgi" else bound
        return self.bound[name]


def run(sock: socket.socket, spec: FunctionSpec, setting: dict[str, Any]) -> None:
    """The life of an instance: limits, environment, import, enter hooks, calls, exit hooks."""
    begun = time.monotonic()
    me = Instance(sock, spec, setting)
    try:
        _settle(me, setting)
        settled = time.monotonic()
        target = _loaded.get(spec.name)
        fresh = target is None
        if fresh:
            target = _raw(loading.load(spec.code))
        imported = time.monotonic()
        if spec.kind == "class":
            if fresh or isinstance(target, type):
                target = _construct(target, setting.get("variant", b""))
                _hooks(target, "enter", snap=True)
            _hooks(target, "enter", snap=False)
        elif setting.get("asgi"):
            target = _asgi(target)
        me.target = target
        ready = time.monotonic()
    except BaseException as error:
        sys.stderr.flush()
        me.send(wire.BROKEN, _failure(error))
        return
    me.send(wire.READY, [begun - setting["started"], settled - begun, imported - settled, ready - imported])
    try:
        if spec.batching is None and (spec.concurrency > 1 or (spec.web and spec.web.kind == "asgi")):
            if _is_async(me):
                asyncio.run(_serve_async(me))
            else:
                _serve_threads(me)
        else:
            _serve(me)
    except ConnectionError:
        os._exit(0)
    finally:
        if spec.kind == "class":
            _hooks(me.target, "exit", snap=False)
        sys.stdout.flush()
        sys.stderr.flush()


def _settle(me: Instance, setting: dict[str, Any]) -> None:
    """Limits, environment variables, output, working folder, random numbers: all before any user code."""
    if setting["lifeline"]:
        lead_group(setting["lifeline"])
    limits.enter(setting["limits"], me.spec.memory_limit_bytes, bool(setting["limits"]))
    os.environ.update(setting["env"])
    os.environ.update(me.spec.env)
    log = os.open(setting["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    sys.stdout = _Output(me, "stdout")
    sys.stderr = _Output(me, "stderr")
    for path, source in setting["volumes"].items():
        _mount(path, source)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    reseed()


def reseed() -> None:
    """Forks of one parent must not draw the same random numbers. (Python's own generator sees to itself.)"""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed(int.from_bytes(os.urandom(4), "big"))
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "default_generator"):
        torch.default_generator.manual_seed(int.from_bytes(os.urandom(7), "big"))


def _mount(path: str, source: str) -> None:
    """A volume appears under `path` as a link; the link is shared by everybody on this machine who uses that path."""
    if os.path.islink(path) and os.readlink(path) == source:
        return
    if os.path.lexists(path):
        raise FileExistsError(f"A volume cannot appear at {path}: something is there already. Choose another path.")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        os.symlink(source, path)
    except FileExistsError:
        if os.readlink(path) != source:
            raise


# -- serving -----------------------------------------------------------------------------------------------------


def _serve(me: Instance) -> None:
    """One batch, or the calls of one frame one after the other, at a time."""
    recv = me.stream.recv
    loop: asyncio.AbstractEventLoop | None = None
    while True:
        frame = recv()
        if frame[0] == wire.STOP:
            return
        if frame[0] != wire.RUN:
            continue
        _, calls, method, hop, keep, inputs = frame
        function = me.method(method)
        if me.spec.batching is not None:
            _run_batch(me, calls, function, keep, inputs)
        elif inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            loop = loop or asyncio.new_event_loop()
            for call, data in zip(calls, inputs, strict=True):
                loop.run_until_complete(_run_async(me, call, function, hop, keep, data))
        else:
            for call, data in zip(calls, inputs, strict=True):
                _run(me, call, function, hop, keep, data)
        if me.spec.single_use:
            return


def _run(me: Instance, call: int, function: Any, hop: bool, keep: bool, data: bytes) -> None:
    token = _current.set(call)
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
        ok, out, pushed = False, _failure(error), _backpressure(error)
        args = kwargs = None
        if isinstance(error, (SystemExit, KeyboardInterrupt)):
            out = _failure(RuntimeError(f"the function ended its process with {error!r}"))
        del error
    _flush()
    me.send(wire.DONE, call, ok, took, out, pushed, _release(mapped))
    _current.reset(token)


def _flush() -> None:
    """What a call printed arrives before its result, with or without a newline at the end."""
    sys.stdout.flush()
    sys.stderr.flush()


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
    token = _current.set(calls[0])
    try:
        loaded = [payload.loads(data) for data in inputs]
        args = [[one[0][position] for one in loaded] for position in range(len(loaded[0][0]))]
        kwargs = {key: [one[1][key] for one in loaded] for key in loaded[0][1]}
        results = function(*args, **kwargs)
        if inspect.iscoroutine(results):
            results = asyncio.run(results)
        if not isinstance(results, (list, tuple)) or len(results) != len(calls):
            size = len(results) if isinstance(results, (list, tuple)) else type(results).__name__
            raise TypeError(
                f"A batched function returns a list with one result for each of its {len(calls)} inputs, not {size}."
            )
        outputs = [payload.dumps(result, me.place(keep)) for result in results]
        ok, pushed = True, ""
    except BaseException as error:
        ok, pushed = False, _backpressure(error)
        outputs = [_failure(error)] * len(calls)
    took = (time.monotonic() - started) / len(calls)
    _flush()
    for call, out in zip(calls, outputs, strict=True):
        me.send(wire.DONE, call, ok, took, out, pushed, False)
    _current.reset(token)


def _serve_threads(me: Instance) -> None:
    """Several calls at once of a plain function: a thread each."""
    with ThreadPoolExecutor(me.spec.concurrency) as pool:
        while True:
            frame = me.stream.recv()
            if frame[0] == wire.STOP:
                return
            if frame[0] == wire.RUN:
                _, calls, method, hop, keep, inputs = frame
                pool.submit(contextvars.Context().run, _run, me, calls[0], me.method(method), hop, keep, inputs[0])


async def _serve_async(me: Instance) -> None:
    """Several calls at once of an async function, or of an ASGI app: a task each."""
    loop = asyncio.get_running_loop()
    tasks: dict[int, asyncio.Task[None]] = {}
    while True:
        frame = await loop.run_in_executor(None, me.stream.recv) if not me.stream.waiting() else me.stream.recv()
        if frame[0] == wire.STOP:
            break
        if frame[0] == wire.INTERRUPT and frame[1] in tasks:
            tasks[frame[1]].cancel()
        elif frame[0] == wire.RUN:
            _, calls, method, hop, keep, inputs = frame
            task = loop.create_task(_run_async(me, calls[0], me.method(method), hop, keep, inputs[0]))
            tasks[calls[0]] = task
            task.add_done_callback(lambda _, call=calls[0]: tasks.pop(call, None))  # type: ignore[misc]
    if tasks:
        await asyncio.gather(*tasks.values(), return_exceptions=True)


async def _run_async(me: Instance, call: int, function: Any, hop: bool, keep: bool, data: bytes) -> None:
    _current.set(call)
    started = time.monotonic()
    try:
        value = payload.loads(data)
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
        out, ok, pushed = payload.dumps(result, me.place(keep)), True, ""
    except BaseException as error:
        took = time.monotonic() - started
        ok, out, pushed = False, _failure(error), _backpressure(error)
    _flush()
    me.send(wire.DONE, call, ok, took, out, pushed, False)


def _is_async(me: Instance) -> bool:
    if me.spec.kind == "class":
        return any(
            inspect.iscoroutinefunction(me.method(m)) or inspect.isasyncgenfunction(me.method(m))
            for m in me.spec.methods
        )
    return inspect.iscoroutinefunction(me.target) or inspect.isasyncgenfunction(me.target)


# -- user objects ------------------------------------------------------------------------------------------------


def _raw(target: Any) -> Any:
    """What the user wrote, beneath the decorators of nubes."""
    return getattr(target, "__nubes_raw__", target)


def _parameters(cls: type) -> bool:
    return bool(getattr(cls, "__nubes_parameters__", ()))


def _construct(cls: Any, variant: bytes) -> Any:
    args, kwargs = payload.loads(variant) if variant else ((), {})
    return cls(*args, **kwargs)


def _hooks(target: Any, kind: str, snap: bool) -> None:
    for name in dir(type(target)):
        method = getattr(type(target), name, None)
        hook = getattr(method, "__nubes_hook__", None)
        if hook == (kind, snap):
            result = getattr(target, name)()
            if inspect.iscoroutine(result):
                asyncio.run(result)


def _asgi(factory: Any) -> Any:
    from nubes.gateway.bridge import asgi_caller

    return asgi_caller(factory())


def _failure(error: BaseException) -> bytes:
    """An exception as a payload: the exception itself if it can be pickled, its text and its traceback."""
    text = "".join(traceback.format_exception(error))
    trimmed = error.with_traceback(None)
    try:
        shipped = payload.dumps(trimmed, None, by_value=True)
        payload.loads(shipped)
    except Exception:
        shipped = b""
    return payload.dumps((shipped, f"{type(error).__name__}: {error}", text), None)


def _backpressure(error: BaseException) -> str:
    """The callee that pushed back, if that is what the error says."""
    return str(getattr(error, "__nubes_backpressure__", "") or "")


class _Output(io.TextIOBase):
    """Standard output or error of an instance: whole lines go to the control plane, labelled with their call."""

    def __init__(self, me: Instance, name: str) -> None:
        self._me = me
        self._name = name
        self._parts: dict[int, str] = {}

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 1 if self._name == "stdout" else 2

    def write(self, text: str) -> int:
        call = _current.get()
        text = str(text)
        whole, newline, rest = (self._parts.pop(call, "") + text).rpartition("\n")
        if newline:
            self._me.send(wire.PRINTED, call, self._name, whole + newline)
        if rest:
            self._parts[call] = rest
        return len(text)

    def flush(self) -> None:
        call = _current.get()
        rest = self._parts.pop(call, "")
        if rest:
            self._me.send(wire.PRINTED, call, self._name, rest)


def main() -> None:
    """A fresh interpreter that becomes an instance at once: the descriptor of its socket stands in `argv`."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    stream = wire.Stream(sock)
    spec, setting = stream.recv()
    loading.import_packages(())
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    run(sock, msgspec.msgpack.decode(spec, type=FunctionSpec), setting)
    os._exit(0)


if __name__ == "__main__":
    main()
