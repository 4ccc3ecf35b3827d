"""An instance: the process that runs one function's calls. It takes frames from one socket and answers on it."""

from __future__ import annotations

import inspect
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

from nubes.drivers.local import endings, forking, lifeline, limits, loading, payload, printed, running, wire
from nubes.drivers.local.setting import Birth, Setting
from nubes.functions.spec import Code, FunctionSpec

_rehearsed = False
_REHEARSALS = 20  # so often does the interpreter change code before it leaves it alone


class Instance:
    """The life of an instance: `prepare` is all that does not depend on which of its function's instances it is.

    A parent that serves one function alone prepares once, for all its forks.
    """

    def __init__(self, spec: FunctionSpec, setting: Setting) -> None:
        self.spec = spec
        self.setting = setting
        self.stream: wire.Stream | None = None
        self.segments = payload.Segments(setting.shared, keep=False)
        self.durable = payload.Segments(setting.objects, durable=True)
        self.durable.patient = True  # what was accepted gets its answer
        self.lock = threading.Lock()
        self.target: Any = None
        self.bound: dict[str, tuple[Any, bool]] = {}
        self.settle_s = 0.0
        self.import_s = 0.0

    def prepare(self) -> None:
        """Environment, output, volumes, and then the user's module. Raises what its import raises."""
        began = time.monotonic()
        os.environ.update(self.setting.env)
        os.environ.update(self.spec.env)
        printed.redirect(self.setting.output, self._print)
        for path, source in self.setting.volumes.items():
            _mount(path, source)
        load: Callable[[Code], Any] = loading.load
        if "NUBES_STORM" in os.environ:  # a schedule of faults that is played for real: see `nubes.storm.live`
            from nubes.storm import inside

            load = inside.enter(self)
        settled = time.monotonic()
        self.target = loading.raw(load(self.spec.code))
        self.settle_s = settled - began
        self.import_s = time.monotonic() - settled

    def share(self) -> None:
        """In a parent, after `prepare`: runs what forks may share of a class, and binds a function."""
        if self.spec.kind != "class":
            if not self._asgi:
                self.method("")
        elif not loading.parameters(self.target):
            self._construct(b"")
        if self._asgi or any(is_async for _, is_async in self.bound.values()):
            from nubes.drivers.local import tasks  # noqa: F401  (so that forks have it)
        self.settle_s = self.import_s = 0.0

    def live(self, stream: wire.Stream, birth: Birth) -> None:
        """From here on an instance: its limits, what is left to prepare, calls, and its exit hooks."""
        began = time.monotonic()
        self.stream = stream
        try:
            limits.enter(birth.limits, self.spec.memory_limit_bytes, bool(birth.limits))
            forking.reseed()
            joined = time.monotonic()
            if self.target is None:
                self.prepare()
            imported = time.monotonic()
            if self.spec.kind == "class":
                if isinstance(self.target, type):
                    self._construct(birth.variant)
                loading.run_hooks(self.target, "enter", snap=False)
            elif self._asgi:
                self.target = loading.asgi(self.target)
            ready = time.monotonic()
        except BaseException as error:
            sys.stderr.flush()
            self.send(wire.BROKEN, endings.failure(error))
            return
        settle_s = joined - began + self.settle_s
        self.send(wire.READY, [began - birth.started_s, settle_s, self.import_s, ready - imported], os.getpid())
        try:
            running.serve(self, stream)
        except ConnectionError:
            os._exit(0)
        finally:
            if self.spec.kind == "class":
                loading.run_hooks(self.target, "exit", snap=False)
            endings.flush()

    def send(self, *frame: Any) -> None:
        assert self.stream is not None
        data = wire.pack(*frame)
        with self.lock:
            self.stream.send(data)

    def place(self, keep: bool) -> payload.Segments:
        """Where large results go: what must outlive a crash goes to disk."""
        return self.durable if keep else self.segments

    def method(self, name: str) -> tuple[Any, bool]:
        """What runs the calls to one method (of a function: to ""), and whether it is asynchronous."""
        if name not in self.bound:
            bound = getattr(self.target, name) if name else self.target
            web = self.spec.endpoints.get(name)
            if web is not None and web.kind == "asgi":
                bound = loading.asgi(bound)
            is_async = inspect.iscoroutinefunction(bound) or inspect.isasyncgenfunction(bound)
            self.bound[name] = bound, is_async
        return self.bound[name]

    @property
    def _asgi(self) -> bool:
        return self.spec.web is not None and self.spec.web.kind == "asgi"

    def _construct(self, variant: bytes) -> None:
        args, kwargs = payload.loads(variant) if variant else ((), {})
        self.target = self.target(*args, **kwargs)
        loading.run_hooks(self.target, "enter", snap=True)

    def _print(self, call: int, stream: str, text: str) -> None:
        if self.stream is None:  # in a parent
            os.write(1 if stream == "stdout" else 2, text.encode(errors="replace"))
        else:
            self.send(wire.PRINTED, call, stream, text)


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


def rehearse() -> None:
    """In a parent, before it parks: lives whole lives of an instance, so that what is done once at first use is done.

    Method caches, the allocator's pools and the interpreter's adapted code then lie in memory that all forks share;
    without it each of them writes, and so copies, those pages anew.
    """
    global _rehearsed
    if _rehearsed:  # in a parent above
        return
    _rehearsed = True
    streams = sys.stdout, sys.stderr
    try:
        for _ in range(_REHEARSALS):
            ours, theirs = socket.socketpair()
            one = payload.dumps(((1,), {}), None)
            ours.sendall(wire.pack(wire.RUN, [0], "", False, False, [one]) + wire.pack(wire.STOP))
            actor = Instance(FunctionSpec(name=""), Setting())
            actor.target = _nothing
            sys.stdout = printed.Output("stdout", 1, actor._print)
            sys.stderr = printed.Output("stderr", 2, actor._print)
            actor.live(wire.Stream(theirs.fileno()), Birth())
            ours.close()
            theirs.close()
    finally:
        sys.stdout, sys.stderr = streams


def _nothing(value: Any) -> Any:
    print(end="")
    return value


def main() -> None:
    """A fresh interpreter that becomes an instance at once: `argv` holds its socket's descriptor, and its lifeline."""
    lifeline.hold(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    stream = wire.Stream(int(sys.argv[1]))
    spec, setting, birth = stream.recv()
    decode = msgspec.msgpack.decode
    me = Instance(decode(spec, type=FunctionSpec), decode(setting, type=Setting))
    me.live(stream, Birth(*birth))
    os._exit(0)


if __name__ == "__main__":
    main()
