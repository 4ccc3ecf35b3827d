"""Apps: what the declarative API starts from. Its other parts are in `nubes.api`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

import msgspec

from nubes import client as clients
from nubes.api.calls import Cls, Function
from nubes.api.decorators import install_parameters, refuse_bare
from nubes.api.options import spec_of
from nubes.kernel.errors import UsageError

if TYPE_CHECKING:
    from nubes.images import Image
    from nubes.storage import Secret, Volume

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])

_encode = msgspec.msgpack.Encoder().encode


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
        refuse_bare(raw, "app.function")

        def wrap(raw: Callable[P, R]) -> Function[P, R]:
            if isinstance(raw, type):
                raise UsageError(f"{raw.__name__} is a class.", "Use @app.cls() for it.")
            made = Function(self, raw, spec_of(self, raw, options))
            self.functions[made.name] = made
            return made

        return wrap

    def cls(self, raw: Any = None, /, **options: Any) -> Callable[[type], Any]:
        """Makes a class one of the cloud's: state is set up in `@enter` hooks, `@method`s are called remotely."""
        refuse_bare(raw, "app.cls")

        def wrap(raw: type) -> Cls:
            if not isinstance(raw, type):
                raise UsageError(f"{getattr(raw, '__name__', raw)!r} is not a class.", "Use @app.function() for it.")
            install_parameters(raw)
            made = Cls(self, raw, spec_of(self, raw, options))
            self.functions[made.name] = made
            return made

        return wrap

    def local_entrypoint(self, raw: Any = None, /) -> Callable[[F], F]:
        """Runs here, with `nubes run FILE`, and calls the cloud from there."""
        refuse_bare(raw, "app.local_entrypoint")

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
    _client: clients.Client | None = None  # of the control plane it runs on

    def _deploy_ephemeral(self) -> None:
        """An ephemeral app lives as long as the connection that deployed it: keep that one."""
        client = self._client = clients.connect()
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
        self._client = clients.connect()
        return self._client

    def stop(self) -> None:
        """Takes the app off the control plane."""
        clients.connect(start=False).ask("stop_app", app=self.name)
        self._running = False
