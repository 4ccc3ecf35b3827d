"""What can be called: functions, objects and their methods, and calls under way."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from nubes import client as clients
from nubes import ids
from nubes.client import Target
from nubes.functions.spec import FunctionSpec
from nubes.kernel.errors import NotFound, UsageError
from nubes.kernel.units import seconds
from nubes.twins import Twins

if TYPE_CHECKING:
    from nubes.app import App
    from nubes.images import Image
    from nubes.storage import Secret, Volume

P = ParamSpec("P")
R = TypeVar("R")


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
        self,
        *iterables: Iterable[Any],
        kwargs: Mapping[str, Any] = {},
        order_outputs: bool = True,
        return_exceptions: bool = False,
    ) -> Iterator[Any]:
        """Runs a call for each element (of each iterable, as `map` does); yields results in order, or as completed."""
        inputs = ((one, dict(kwargs)) for one in zip(*iterables, strict=False))
        return self._connected().map(self._target(), inputs, order_outputs, return_exceptions)

    def _map_aio(
        self,
        *iterables: Iterable[Any],
        kwargs: Mapping[str, Any] = {},
        order_outputs: bool = True,
        return_exceptions: bool = False,
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

    def _for_each(
        self, *iterables: Iterable[Any], kwargs: Mapping[str, Any] = {}, ignore_exceptions: bool = False
    ) -> None:
        """Like `map`, for calls whose results nobody wants."""
        for _ in self._map(*iterables, kwargs=kwargs, order_outputs=False, return_exceptions=ignore_exceptions):
            pass

    async def _for_each_aio(
        self, *iterables: Iterable[Any], kwargs: Mapping[str, Any] = {}, ignore_exceptions: bool = False
    ) -> None:
        async for _ in self._map_aio(
            *iterables, kwargs=kwargs, order_outputs=False, return_exceptions=ignore_exceptions
        ):
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
        client = self.app._client
        return client if client is not None and self.app._running else self.app._ready()

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
                raise UsageError(
                    f"{f.spec.name} cannot follow in a chain.", "Plain functions can: they take one result."
                )
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
            names = ", ".join(sorted(one.partition("/")[2] for one in known)) or "no functions"
            raise NotFound(f"No function {full!r} is deployed.", f"App {app!r} has: {names}.")
        self._client: clients.Client = client
        self._full = full
        self._generator = bool(known[full]["generator"])

    @property
    def is_generator(self) -> bool:
        return self._generator

    def _target(self) -> Target:
        return Target(self._full)

    def _connected(self) -> clients.Client:
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
