"""The declarative API: apps, functions, classes and what hangs on them."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import inspect
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

import cloudpickle
import msgspec

from nubes import client as clients
from nubes import ids
from nubes.client import Target
from nubes.functions import calendar
from nubes.functions.spec import DEFAULT_MEMORY_BYTES, Batching, Code, FunctionSpec, Retries, Schedule, Web
from nubes.kernel.errors import UsageError
from nubes.kernel.units import seconds, size_bytes
from nubes.place import is_local
from nubes.twins import Twins

if TYPE_CHECKING:
    from nubes.images import Image
    from nubes.storage import Secret, Volume

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)
F = TypeVar("F", bound=Callable[..., Any])

_encode = msgspec.msgpack.Encoder().encode


# -- decorators ----------------------------------------------------------------------------------------------------


def _marks(name: str, value: Any) -> Callable[[F], F]:
    def mark(target: F) -> F:
        raw = getattr(target, "__nubes_raw__", target)
        setattr(raw, name, value)
        return target

    return mark


def _called(argument: Any, name: str) -> None:
    if callable(argument):
        raise UsageError(f"@{name} was used without parentheses.", f"Write @{name}() above the function.")


def method(**unknown: Any) -> Callable[[F], F]:
    """A method of an `@app.cls` class that can be called remotely."""
    if unknown:
        raise UsageError(f"@method takes no {', '.join(unknown)}.", "Put it on @app.cls.")
    return _marks("__nubes_method__", True)


def enter(*, snap: bool = False) -> Callable[[F], F]:
    """Runs when an instance starts; with `snap`, once in the parent that instances are forked from."""
    return _marks("__nubes_hook__", ("enter", snap))


def exit() -> Callable[[F], F]:
    """Runs when an instance is stopped."""
    return _marks("__nubes_hook__", ("exit", False))


def batched(*, max_batch_size: int, wait_ms: float) -> Callable[[F], F]:
    """Waiting calls run together: the function gets lists, and returns a list with a result for each."""
    if not 1 <= max_batch_size <= 1000 or not 0 <= wait_ms <= 600_000:
        raise UsageError("@batched takes max_batch_size from 1 to 1000 and wait_ms from 0 to 600000.")
    return _marks("__nubes_batching__", Batching(max_batch_size, wait_ms / 1000))


def concurrent(*, max_inputs: int) -> Callable[[F], F]:
    """An instance runs up to `max_inputs` calls at once: threads, or tasks if the function is async."""
    if max_inputs < 1:
        raise UsageError(f"max_inputs={max_inputs} is less than one.")
    return _marks("__nubes_concurrency__", max_inputs)


def fastapi_endpoint(*, method: str = "GET", requires_token: bool = False) -> Callable[[F], F]:
    """Reachable over HTTP: arguments come from the query string or a JSON body, the result is sent as JSON."""
    return _marks("__nubes_web__", Web("function", method.upper(), not requires_token))


web_endpoint = fastapi_endpoint


def asgi_app(*, requires_token: bool = False) -> Callable[[F], F]:
    """The function returns an ASGI app (Starlette, FastAPI, ...), which is served over HTTP."""
    return _marks("__nubes_web__", Web("asgi", "*", not requires_token))


_NONE: Any = object()


class _Parameter:
    def __init__(self, default: Any) -> None:
        self.default = default


def parameter(*, default: Any = _NONE, init: bool = True) -> Any:
    """A parameter of an `@app.cls` class: instances with different values are kept apart."""
    return _Parameter(default)


def Cron(expression: str, timezone: str = "UTC") -> Schedule:
    """Calls at the times of a cron expression, e.g. `Cron("0 6 * * 1-5", timezone="Europe/Berlin")`."""
    schedule = Schedule(cron=expression, timezone=timezone)
    try:
        calendar.next_time(schedule, 0.0)
    except Exception as error:
        raise UsageError(f"Cron({expression!r}, timezone={timezone!r}) is not a schedule: {error}.") from None
    return schedule


def Period(*, days: float = 0, hours: float = 0, minutes: float = 0, seconds: float = 0) -> Schedule:
    """Calls at a fixed interval, from the deployment on."""
    period_s = days * 86_400 + hours * 3_600 + minutes * 60 + seconds
    if period_s <= 0:
        raise UsageError("Period() needs a length.", "Write Period(minutes=5).")
    return Schedule(period_s=period_s)


# -- apps ----------------------------------------------------------------------------------------------------------


class App:
    """A set of functions that are deployed together. `image`, `secrets` and `volumes` are defaults for them all."""

    def __init__(
        self,
        name: str = "app",
        *,
        image: Image | None = None,
        secrets: Iterable[Secret] = (),
        volumes: Mapping[str, Volume] | None = None,
        keep_alive: str = "",
    ) -> None:
        if not name or any(letter in name for letter in "/#: "):
            raise UsageError(f"{name!r} cannot be the name of an app.", "Use letters, digits, dashes and dots.")
        self.name = name
        self.image = image
        self.secrets = tuple(secrets)
        self.volumes = dict(volumes or {})
        self.keep_alive = keep_alive
        self.functions: dict[str, Function[Any, Any] | Cls] = {}
        self.entrypoints: dict[str, Callable[..., Any]] = {}
        self._running = False

    @overload
    def function(self, raw: Callable[P, R], /) -> Function[P, R]: ...
    @overload
    def function(self, /, **options: Any) -> Callable[[Callable[P, R]], Function[P, R]]: ...
    def function(self, raw: Any = None, /, **options: Any) -> Any:
        """Makes a Python function one of the cloud's. For the options see `options`."""
        _called(raw, "app.function")

        def wrap(raw: Callable[P, R]) -> Function[P, R]:
            if isinstance(raw, type):
                raise UsageError(f"{raw.__name__} is a class.", "Use @app.cls() for it.")
            made = Function(self, raw, _spec(self, raw, options))
            self.functions[made.name] = made
            return made

        return wrap

    def cls(self, raw: Any = None, /, **options: Any) -> Callable[[type], Any]:
        """Makes a class one of the cloud's: state is set up in `@enter` hooks, `@method`s are called remotely."""
        _called(raw, "app.cls")

        def wrap(raw: type) -> Cls:
            if not isinstance(raw, type):
                raise UsageError(f"{getattr(raw, '__name__', raw)!r} is not a class.", "Use @app.function() for it.")
            _install_parameters(raw)
            made = Cls(self, raw, _spec(self, raw, options))
            self.functions[made.name] = made
            return made

        return wrap

    def local_entrypoint(self, raw: Any = None, /) -> Callable[[F], F]:
        """Runs here, with `nubes run FILE`, and calls the cloud from there."""
        _called(raw, "app.local_entrypoint")

        def mark(raw: F) -> F:
            self.entrypoints[raw.__name__] = raw
            return raw

        return mark

    @property
    def registered_functions(self) -> dict[str, Function[Any, Any] | Cls]:
        return dict(self.functions)

    def include(self, other: App) -> App:
        """Takes over the functions of another app."""
        for made in other.functions.values():
            made.app = self
            made.spec = msgspec.structs.replace(made.spec, name=f"{self.name}/{made.spec.name.partition('/')[2]}")
            self.functions[made.name] = made
        return self

    def deploy(self, name: str | None = None) -> dict[str, Any]:
        """Puts the app on the control plane, where it stays; returns its name, version and functions."""
        return self._deploy(ephemeral=False)

    def _deploy(self, ephemeral: bool) -> dict[str, Any]:
        client = clients.connect()
        self._prepare(client)
        specs = [_encode(made.spec) for made in self.functions.values()]
        answer: dict[str, Any] = client.ask("deploy", app=self.name, functions=specs, ephemeral=ephemeral)
        self._running = True
        return answer

    @contextlib.contextmanager
    def run(self) -> Iterator[App]:
        """Runs the app for as long as the block lasts; starts a control plane of its own if none is running."""
        self._deploy_ephemeral()
        try:
            yield self
        finally:
            self._running = False
            if self._held is not None:
                self._held.stream.close()
                self._held = None

    _held: clients.Connection | None = None

    def _deploy_ephemeral(self) -> None:
        """An ephemeral app lives as long as the connection that deployed it: keep that one."""
        client = clients.connect()
        self._prepare(client)
        self._held = clients.Connection(client.path)
        specs = [_encode(made.spec) for made in self.functions.values()]
        self._held.ask("deploy", {"app": self.name, "functions": specs, "ephemeral": True})
        self._running = True

    def _prepare(self, client: clients.Client) -> None:
        """Images built, secrets handed in: what a deployment needs before it."""
        for made in self.functions.values():
            if made.image is not None and made.image.id:
                client.ask("build", environment=made.image.id, definition=made.image.definition())
            for secret in made.secrets:
                secret.hand_in(client)
            for volume in made.volumes:
                volume.hand_in(client)

    def _ready(self) -> clients.Client:
        """The client to call this app's functions with; a call outside `run` starts the app for this process."""
        if not self._running and os.environ.get("NUBES_APP") is None:
            self._deploy_ephemeral()
        return clients.connect()

    def stop(self) -> None:
        """Takes the app off the control plane."""
        clients.connect(start=False).ask("stop_app", app=self.name)
        self._running = False


class _Callable(Generic[P, R]):
    """What can be called remotely: a function, or a method of a class's instances."""

    def __init__(self) -> None:
        self.remote = Twins[P, Any](self._remote, self._remote_aio)
        self.spawn = Twins[P, Any](self._spawn, self._spawn_aio)
        self.map = Twins[..., Any](self._map, self._map_aio)
        self.starmap = Twins[..., Any](self._starmap, self._starmap_aio)
        self.for_each = Twins[..., Any](self._for_each, self._for_each_aio)
        self.remote_gen = Twins[P, Any](self._remote_gen, self._remote_gen_aio)
        self._route: tuple[str, ...] = ()
        self._client: clients.Client | None = None

    # Subclasses say what is called and through whom.

    def _target(self) -> Target:
        raise NotImplementedError

    def _connected(self) -> clients.Client:
        raise NotImplementedError

    @property
    def is_generator(self) -> bool:
        return False

    def _remote(self, *args: Any, **kwargs: Any) -> Any:
        """Runs a call in the cloud and returns its result; what it raises is raised here."""
        if self.is_generator:
            return self._remote_gen(*args, **kwargs)
        return self._connected().remote(self._target(), args, kwargs, self._route)

    async def _remote_aio(self, *args: Any, **kwargs: Any) -> Any:
        return await self._connected().remote_async(self._target(), args, kwargs, self._route)

    def _remote_gen(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Runs a generator in the cloud and yields what it yields, as it comes."""
        return self._connected().stream(self._target(), args, kwargs)

    def _remote_gen_aio(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        return self._connected().stream_async(self._target(), args, kwargs)

    def _spawn(self, *args: Any, **kwargs: Any) -> FunctionCall:
        """Hands in a call and returns at once. The call survives crashes and runs at least once."""
        if self.is_generator:
            raise UsageError("A generator cannot be spawned: nobody would take what it yields.", "Use .remote_gen().")
        client = self._connected()
        return FunctionCall(client.spawn(self._target(), args, kwargs, self._route))

    async def _spawn_aio(self, *args: Any, **kwargs: Any) -> FunctionCall:
        return FunctionCall(await self._connected().spawn_async(self._target(), args, kwargs))

    def _map(
        self, *iterables: Iterable[Any], kwargs: Mapping[str, Any] = {}, order_outputs: bool = True, return_exceptions: bool = False
    ) -> Iterator[Any]:
        """Runs a call for each element (of each iterable, as `map` does); yields results in order, or as completed."""
        inputs = ((one, dict(kwargs)) for one in zip(*iterables, strict=False))
        return self._connected().map(self._target(), inputs, order_outputs, return_exceptions)

    def _map_aio(
        self, *iterables: Iterable[Any], kwargs: Mapping[str, Any] = {}, order_outputs: bool = True, return_exceptions: bool = False
    ) -> AsyncIterator[Any]:
        inputs = ((one, dict(kwargs)) for one in zip(*iterables, strict=False))
        return self._connected().map_async(self._target(), inputs, order_outputs, return_exceptions)

    def _starmap(
        self, iterable: Iterable[Iterable[Any]], *, kwargs: Mapping[str, Any] = {}, order_outputs: bool = True,
        return_exceptions: bool = False,
    ) -> Iterator[Any]:  # fmt: skip
        """Like `map`, with the arguments of each call as one tuple."""
        inputs = ((tuple(one), dict(kwargs)) for one in iterable)
        return self._connected().map(self._target(), inputs, order_outputs, return_exceptions)

    def _starmap_aio(
        self, iterable: Iterable[Iterable[Any]], *, kwargs: Mapping[str, Any] = {}, order_outputs: bool = True,
        return_exceptions: bool = False,
    ) -> AsyncIterator[Any]:  # fmt: skip
        inputs = ((tuple(one), dict(kwargs)) for one in iterable)
        return self._connected().map_async(self._target(), inputs, order_outputs, return_exceptions)

    def _for_each(self, *iterables: Iterable[Any], kwargs: Mapping[str, Any] = {}, ignore_exceptions: bool = False) -> None:
        """Like `map`, for calls whose results nobody wants."""
        for _ in self._map(*iterables, kwargs=kwargs, order_outputs=False, return_exceptions=ignore_exceptions):
            pass

    async def _for_each_aio(self, *iterables: Iterable[Any], kwargs: Mapping[str, Any] = {}, ignore_exceptions: bool = False) -> None:
        async for _ in self._map_aio(*iterables, kwargs=kwargs, order_outputs=False, return_exceptions=ignore_exceptions):
            pass


class Function(_Callable[P, R]):
    """A function of the cloud. Calling it plainly, or with `.local`, runs it here."""

    def __init__(self, app: App, raw: Callable[P, R], spec: FunctionSpec) -> None:
        super().__init__()
        self.app = app
        self.spec = spec
        self.image: Image | None = getattr(raw, "__nubes_image__", None) or app.image
        self.secrets: tuple[Secret, ...] = getattr(raw, "__nubes_secrets__", app.secrets)
        self.volumes: tuple[Volume, ...] = getattr(raw, "__nubes_volumes__", ())
        self.__nubes_raw__ = raw
        self._key = ""
        functools.update_wrapper(self, raw, updated=())

    @property
    def name(self) -> str:
        """The function's name within its app."""
        return self.spec.name.partition("/")[2]

    @property
    def is_generator(self) -> bool:
        return self.spec.generator

    def _target(self) -> Target:
        return Target(self.spec.name, key=self._key)

    def _connected(self) -> clients.Client:
        if self._client is None or not self.app._running:
            self._client = self.app._ready()
        return self._client

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.__nubes_raw__(*args, **kwargs)

    def local(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs the function here, in this process."""
        return self.__nubes_raw__(*args, **kwargs)

    def with_key(self, key: str) -> Function[P, R]:
        """The same function with an idempotency key: calls with the same key run once and share the answer."""
        keyed = Function(self.app, self.__nubes_raw__, self.spec)
        keyed._key = key
        return keyed

    def then(self, *following: Function[Any, Any]) -> Function[P, Any]:
        """A chain: each function gets the result of the one before, handed on without coming back here in between."""
        for f in following:
            if f.spec.batching is not None or f.spec.generator or f.spec.kind != "function":
                raise UsageError(f"{f.spec.name} cannot follow in a chain.", "Plain functions can: they take one result.")
        chained = Function(self.app, self.__nubes_raw__, self.spec)
        chained._route = (*self._route, *(f.spec.name for f in following))
        return chained

    @staticmethod
    def from_name(app: str, name: str) -> RemoteFunction:
        """A function that is deployed already."""
        return RemoteFunction(app, name)


class RemoteFunction(_Callable[..., Any]):
    """A deployed function, found by name."""

    def __init__(self, app: str, name: str) -> None:
        super().__init__()
        client = clients.connect(start=False)
        known = {f["name"]: f for f in client.ask("functions", app=app)}
        full = f"{app}/{name}"
        if full not in known:
            from nubes.kernel.errors import NotFound

            names = ", ".join(sorted(one.partition("/")[2] for one in known)) or "no functions"
            raise NotFound(f"No function {full!r} is deployed.", f"App {app!r} has: {names}.")
        self._client = client
        self._full = full
        self._generator = bool(known[full]["generator"])

    @property
    def is_generator(self) -> bool:
        return self._generator

    def _target(self) -> Target:
        return Target(self._full)

    def _connected(self) -> clients.Client:
        assert self._client is not None
        return self._client


class Cls:
    """A class of the cloud: call it with its parameters, then call the object's methods."""

    def __init__(self, app: App, raw: type, spec: FunctionSpec) -> None:
        self.app = app
        self.spec = spec
        self.image: Image | None = getattr(raw, "__nubes_image__", None) or app.image
        self.secrets: tuple[Secret, ...] = getattr(raw, "__nubes_secrets__", app.secrets)
        self.volumes: tuple[Volume, ...] = getattr(raw, "__nubes_volumes__", ())
        self.__nubes_raw__ = raw
        functools.update_wrapper(self, raw, updated=())

    @property
    def name(self) -> str:
        return self.spec.name.partition("/")[2]

    def __call__(self, *args: Any, **kwargs: Any) -> Obj:
        return Obj(self, args, kwargs)


class Obj:
    """An object whose methods run in the cloud, in instances made with its parameters."""

    def __init__(self, cls: Cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._cls = cls
        self._made = (args, kwargs)
        self._here: Any = None
        inspect.signature(cls.__nubes_raw__).bind(*args, **kwargs)  # a wrong parameter is an error here, not there

    def __getattr__(self, name: str) -> Any:
        raw = getattr(self._cls.__nubes_raw__, name)
        if getattr(raw, "__nubes_method__", False) or hasattr(raw, "__nubes_web__"):
            return Method(self, name, raw)
        raise AttributeError(f"{self._cls.name}.{name} is not a @method: it cannot be called remotely.")

    def _variant(self) -> str:
        from nubes.drivers.local import payload

        return "#" + payload.dumps(self._made, None).hex() if self._made != ((), {}) else ""

    def _local(self) -> Any:
        if self._here is None:
            args, kwargs = self._made
            self._here = self._cls.__nubes_raw__(*args, **kwargs)
            for snap in (True, False):
                for name in dir(self._here):
                    if getattr(getattr(type(self._here), name, None), "__nubes_hook__", None) == ("enter", snap):
                        getattr(self._here, name)()
        return self._here


class Method(_Callable[..., Any]):
    """One method of an object in the cloud."""

    def __init__(self, obj: Obj, name: str, raw: Callable[..., Any]) -> None:
        super().__init__()
        self._obj = obj
        self._name = name
        self._raw = raw

    @property
    def is_generator(self) -> bool:
        return inspect.isgeneratorfunction(self._raw) or inspect.isasyncgenfunction(self._raw)

    def _target(self) -> Target:
        return Target(self._obj._cls.spec.name, self._name, self._obj._variant())

    def _connected(self) -> clients.Client:
        return self._obj._cls.app._ready()

    def local(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._obj._local(), self._name)(*args, **kwargs)

    __call__ = local


class FunctionCall:
    """A call that was spawned. Any process that knows its id can ask for its result."""

    def __init__(self, call: int) -> None:
        self._call = call
        self.get = Twins[..., Any](self._get, self._get_aio)

    @property
    def object_id(self) -> str:
        return ids.show(self._call)

    @staticmethod
    def from_id(text: str) -> FunctionCall:
        return FunctionCall(ids.parse(text))

    def _get(self, timeout: str | float | None = None) -> Any:
        """The result; `CallTimeout` (a `TimeoutError`) if it takes longer. `timeout=0` only looks."""
        return clients.connect().fetch(self._call, None if timeout is None else seconds(timeout, "timeout"))

    async def _get_aio(self, timeout: str | float | None = None) -> Any:
        return await clients.connect().fetch_async(self._call, None if timeout is None else seconds(timeout, "timeout"))

    def cancel(self, terminate_instances: bool = False) -> None:
        """Withdraws the call; if it runs, its instance is ended."""
        clients.connect().cancel(self._call, terminate_instances)

    @staticmethod
    def gather(*calls: FunctionCall) -> list[Any]:
        """The results of several calls, in their order; the first failure is raised."""
        return [call.get() for call in calls]

    def __repr__(self) -> str:
        return f"FunctionCall({self.object_id!r})"


# -- declarations --------------------------------------------------------------------------------------------------


def options(
    *,
    name: str | None = None,
    cpu: float | tuple[float, float] = 0.125,
    memory: str | tuple[str, str] | None = None,
    timeout: str | float = 300,
    startup_timeout: str | float = 300,
    retries: int | Retries = 0,
    min_instances: int = 0,
    max_instances: int = 0,
    buffer_instances: int = 0,
    scaledown_window: str | float | None = None,
    keep_alive: str = "",
    max_queued: int = 100_000,
    image: Image | None = None,
    secrets: Iterable[Secret] = (),
    volumes: Mapping[str, Volume] | None = None,
    env: Mapping[str, str] | None = None,
    schedule: Schedule | None = None,
    single_use: bool = False,
    serialized: bool = False,
    criticality: int = 0,
    quota: str = "reserved",
    quota_cpu: float = 0.0,
    deadline: str | float = 0,
    min_containers: int = 0,
    max_containers: int = 0,
    buffer_containers: int = 0,
) -> dict[str, Any]:
    """What `@app.function` and `@app.cls` take. Sizes are text ("512MiB"), durations text or seconds.

    `cpu` and `memory` are requests; a pair is (request, limit). `min_containers` and its kin are the same as
    `min_instances`; `scaledown_window="5m"` the same as `keep_alive="fixed-window(keep=5m)"`.
    """
    cpu_request, cpu_limit = cpu if isinstance(cpu, tuple) else (cpu, 0.0)
    memory_request, memory_limit = memory if isinstance(memory, tuple) else (memory, None)
    for what, count in (("min_instances", min_instances), ("max_instances", max_instances), ("buffer_instances", buffer_instances)):
        if count < 0:
            raise UsageError(f"{what}={count} is negative.")
    low, high = min_instances or min_containers, max_instances or max_containers
    if high and low > high:
        raise UsageError(f"min_instances={low} is more than max_instances={high}.")
    if cpu_request < 0 or cpu_limit < 0:
        raise UsageError(f"cpu={cpu!r} is negative.", "Write a number of cores, e.g. cpu=0.5.")
    if quota not in ("reserved", "opportunistic"):
        raise UsageError(f"quota={quota!r} is unknown.", 'It is "reserved" or "opportunistic".')
    if scaledown_window is not None:
        keep_alive = f"fixed-window(keep={seconds(scaledown_window, 'scaledown_window'):g}s)"
    if keep_alive and is_local():
        from nubes.kernel.policy import make

        make("keep-alive", keep_alive)  # a wrong name is an error where it is written
    return {
        "own_name": name,
        "cpu": float(cpu_request),
        "cpu_limit": float(cpu_limit),
        "memory_bytes": size_bytes(memory_request, "memory") if memory_request is not None else DEFAULT_MEMORY_BYTES,
        "memory_limit_bytes": size_bytes(memory_limit, "memory") if memory_limit else 0,
        "timeout_s": seconds(timeout, "timeout"),
        "startup_timeout_s": seconds(startup_timeout, "startup_timeout"),
        "retries": retries if isinstance(retries, Retries) else Retries(retries),
        "min_instances": low,
        "max_instances": high,
        "buffer_instances": buffer_instances or buffer_containers,
        "keep_alive": keep_alive,
        "max_queued": max_queued,
        "env": dict(env or {}),
        "schedule": schedule,
        "single_use": single_use,
        "criticality": criticality,
        "quota": quota,
        "quota_cpu": quota_cpu,
        "deadline_s": seconds(deadline, "deadline"),
        "image": image,
        "secrets": tuple(secrets),
        "volumes": dict(volumes or {}),
        "serialized": serialized,
    }


def _spec(app: App, raw: Any, given: dict[str, Any]) -> FunctionSpec:
    try:
        chosen = options(**given)
    except TypeError as error:
        takes = ", ".join(inspect.signature(options).parameters)
        raise UsageError(f"{getattr(raw, '__name__', raw)}: {error}.", f"The options are: {takes}.") from None
    name = chosen.pop("own_name") or raw.__qualname__.rpartition("<locals>.")[2]
    image = chosen.pop("image") or app.image
    secrets = (*app.secrets, *chosen.pop("secrets"))
    volumes = {**app.volumes, **chosen.pop("volumes")}
    raw.__nubes_image__, raw.__nubes_secrets__, raw.__nubes_volumes__ = image, secrets, tuple(volumes.values())
    if image is not None:
        chosen["env"] = {**dict(image.variables), **chosen["env"]}
    web = getattr(raw, "__nubes_web__", None)
    methods: tuple[str, ...] = ()
    endpoints: dict[str, Web] = {}
    if isinstance(raw, type):
        endpoints = {n: getattr(raw, n).__nubes_web__ for n in dir(raw) if hasattr(getattr(raw, n, None), "__nubes_web__")}
        methods = tuple(n for n in dir(raw) if n in endpoints or getattr(getattr(raw, n, None), "__nubes_method__", False))
    batching = getattr(raw, "__nubes_batching__", None)
    for one in methods:
        batching = batching or getattr(getattr(raw, one), "__nubes_batching__", None)
        web = web or getattr(getattr(raw, one), "__nubes_web__", None)
    if isinstance(raw, type) and not methods:
        raise UsageError(f"Class {raw.__name__} has no method that can be called.", "Put @nubes.method() above one.")
    chosen["keep_alive"] = chosen["keep_alive"] or app.keep_alive
    return FunctionSpec(
        name=f"{app.name}/{name}",
        code=_code(raw, chosen.pop("serialized")),
        kind="class" if isinstance(raw, type) else "function",
        methods=methods,
        concurrency=getattr(raw, "__nubes_concurrency__", 100 if web and web.kind == "asgi" else 1),
        batching=batching,
        web=web,
        endpoints=endpoints,
        environment=image.id if image is not None and image.id else "",
        secrets=tuple(secret.name for secret in secrets),
        volumes={path: volume.name for path, volume in volumes.items()},
        generator=inspect.isgeneratorfunction(raw) or inspect.isasyncgenfunction(raw),
        trigger="timer" if chosen["schedule"] else "http" if web else "call",
        **chosen,
    )


def _code(raw: Any, serialized: bool) -> Code:
    """By reference if the function stands in a file that an instance can import, else by value."""
    module = sys.modules.get(raw.__module__)
    file = getattr(module, "__file__", None)
    imports = _imports(raw, file)
    local = "<locals>" in raw.__qualname__ or raw.__name__ == "<lambda>"
    if serialized or local or file is None or not os.path.exists(file):
        pickled = cloudpickle.dumps(raw)
        return Code(pickled=pickled, imports=imports, digest=hashlib.sha256(pickled).hexdigest()[:16])
    with open(file, "rb") as source:
        digest = hashlib.sha256(source.read()).hexdigest()[:16]
    module_name = "__main__" if raw.__module__ in ("__main__", "__nubes_main__") else raw.__module__
    return Code(os.path.abspath(file), module_name, raw.__qualname__, imports=imports, digest=digest)


@functools.lru_cache(maxsize=256)
def _module_imports(file: str, stamp: float) -> tuple[frozenset[str], dict[str, frozenset[str]]]:
    """The packages a file imports at its top, and those each of its top-level functions and classes imports within."""
    try:
        with open(file, "rb") as source:
            tree = ast.parse(source.read())
    except (OSError, SyntaxError, ValueError):
        return frozenset(), {}
    inner: dict[str, frozenset[str]] = {}
    top: set[str] = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            inner[node.name] = frozenset().union(*(_names(child) for child in ast.walk(node)))
        else:
            for child in ast.walk(node):
                top |= _names(child)
    return frozenset(top), inner


def _names(node: ast.AST) -> frozenset[str]:
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        names = [node.module]
    else:
        return frozenset()
    skipped = sys.stdlib_module_names | {"nubes"}
    return frozenset(name for name in names if name.partition(".")[0] not in skipped)


def _imports(raw: Any, file: str | None) -> tuple[str, ...]:
    """The packages a function asks for, read from its source: what its parents in the process tree may hold."""
    if file is None or not os.path.exists(file):
        return ()
    top, inner = _module_imports(file, os.path.getmtime(file))
    own = inner.get(raw.__qualname__.partition(".")[0], frozenset())
    folder = os.path.dirname(os.path.abspath(file))

    def beside(name: str) -> bool:
        """Modules next to the user's file are the function's own code, not packages."""
        head = os.path.join(folder, name.partition(".")[0])
        return os.path.exists(head + ".py") or os.path.isdir(head)

    return tuple(sorted(name for name in top | own if not beside(name)))


def _install_parameters(raw: type) -> None:
    """Gives a class with `parameter()` fields an `__init__` that takes them."""
    fields = {name: value for name, value in vars(raw).items() if isinstance(value, _Parameter)}
    raw.__nubes_parameters__ = tuple(fields)  # type: ignore[attr-defined]
    if not fields:
        return

    def __init__(self: Any, **given: Any) -> None:
        for name, field in fields.items():
            value = given.pop(name, field.default)
            if value is _NONE:
                raise TypeError(f"{raw.__name__}() needs {name}=")
            setattr(self, name, value)
        if given:
            raise TypeError(f"{raw.__name__}() takes no {', '.join(given)}; it takes {', '.join(fields)}")

    raw.__init__ = __init__  # type: ignore[misc]


AnyFunction = Function[Any, Any]
ClassType = Cls
