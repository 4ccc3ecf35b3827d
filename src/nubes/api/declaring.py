"""From what a user wrote, its options and its marks to a specification."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from nubes.api.options import options
from nubes.functions.spec import FunctionSpec, Web
from nubes.kernel.errors import UsageError

if TYPE_CHECKING:
    from nubes.images import Image
    from nubes.storage import Secret, Volume


class Defaults(NamedTuple):
    """What an app gives all its functions."""

    app: str
    image: Image | None
    secrets: tuple[Secret, ...]
    volumes: Mapping[str, Volume]
    keep_alive: str


class Declared(NamedTuple):
    """A function or class as it was declared, with what must be there before it is deployed."""

    raw: Any
    serialized: bool
    spec: FunctionSpec  # without its code
    image: Image | None
    secrets: tuple[Secret, ...]
    volumes: tuple[Volume, ...]

    def complete(self) -> FunctionSpec:
        """The specification with the code, as it is now. (In the cloud nobody asks, and its forks stay the smaller.)"""
        from nubes.api.source import code_of

        return msgspec.structs.replace(self.spec, code=code_of(self.raw, self.serialized))

    def within(self, app: str) -> Declared:
        """The same, in another app."""
        name = f"{app}/{self.spec.name.partition('/')[2]}"
        return self._replace(spec=msgspec.structs.replace(self.spec, name=name))


def declare(raw: Any, given: dict[str, Any], defaults: Defaults) -> Declared:
    """What `@app.function(**given)` above `raw` declares. Raises `UsageError`."""
    try:
        chosen = options(**given)
    except TypeError as error:
        takes = ", ".join(inspect.signature(options).parameters)
        raise UsageError(f"{getattr(raw, '__name__', raw)}: {error}.", f"The options are: {takes}.") from None
    name = chosen.pop("own_name") or raw.__qualname__.rpartition("<locals>.")[2]
    image = chosen.pop("image") or defaults.image
    secrets = (*defaults.secrets, *chosen.pop("secrets"))
    volumes = {**defaults.volumes, **chosen.pop("volumes")}
    serialized = chosen.pop("serialized")
    if image is not None:
        chosen["env"] = {**dict(image.variables), **chosen["env"]}
    marks = _marks_of_class(raw) if isinstance(raw, type) else _marks_of(raw)
    spec = FunctionSpec(
        name=f"{defaults.app}/{name}",
        environment=image.id if image is not None and image.id else "",
        secrets=tuple(secret.name for secret in secrets),
        volumes={path: volume.name for path, volume in volumes.items()},
        trigger="timer" if chosen["schedule"] else "http" if marks["web"] else "call",
        **{**chosen, "keep_alive": chosen["keep_alive"] or defaults.keep_alive},
        **marks,
    )
    return Declared(raw, serialized, spec, image, secrets, tuple(volumes.values()))


def _marks_of(raw: Any) -> dict[str, Any]:
    """What the decorators beneath `@app.function` said."""
    web = getattr(raw, "__nubes_web__", None)
    return {
        "web": web,
        "batching": getattr(raw, "__nubes_batching__", None),
        "concurrency": _concurrency(raw, web),
        "generator": inspect.isgeneratorfunction(raw) or inspect.isasyncgenfunction(raw),
    }


def _marks_of_class(raw: type) -> dict[str, Any]:
    """What the decorators of a class and of its methods said."""
    members: dict[str, Any] = {name: getattr(raw, name, None) for name in dir(raw)}
    endpoints: dict[str, Web] = {n: m.__nubes_web__ for n, m in members.items() if hasattr(m, "__nubes_web__")}
    methods = tuple(n for n, m in members.items() if n in endpoints or getattr(m, "__nubes_method__", False))
    if not methods:
        raise UsageError(f"Class {raw.__name__} has no method that can be called.", "Put @nubes.method() above one.")
    web = next(iter(endpoints.values()), None)
    batchings = [getattr(one, "__nubes_batching__", None) for one in (raw, *(members[name] for name in methods))]
    return {
        "kind": "class",
        "methods": methods,
        "endpoints": endpoints,
        "web": web,
        "batching": next(filter(None, batchings), None),
        "concurrency": _concurrency(raw, web),
    }


def _concurrency(raw: Any, web: Web | None) -> int:
    """How many calls an instance runs at once; an ASGI app is made for many."""
    given: int = getattr(raw, "__nubes_concurrency__", 100 if web and web.kind == "asgi" else 1)
    return given
