"""Classes of the cloud, their objects, and the objects' methods."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from nubes.api.calling import Calling
from nubes.api.member import Member
from nubes.client import Client, Target


class Cls(Member):
    """A class of the cloud: call it with its parameters, then call the object's methods."""

    def __call__(self, *args: Any, **kwargs: Any) -> Obj:
        """An object with these parameters. Raises `TypeError` if the class does not take them."""
        return Obj(self, args, kwargs)


class Obj:
    """An object whose methods run in the cloud, in instances made with its parameters."""

    def __init__(self, cls: Cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inspect.signature(cls.__nubes_raw__).bind(*args, **kwargs)  # a wrong parameter is an error here, not there
        self._cls = cls
        self._made = (args, kwargs)

    def __getattr__(self, name: str) -> Any:
        raw = getattr(self._cls.__nubes_raw__, name)
        if getattr(raw, "__nubes_method__", False) or hasattr(raw, "__nubes_web__"):
            made = self.__dict__[name] = Method(self, name, raw)
            return made
        raise AttributeError(f"{self._cls.name}.{name} is not a @method: it cannot be called remotely.")

    @functools.cached_property
    def _variant(self) -> str:
        """What tells instances with other parameters apart."""
        from nubes.drivers.local import payload

        return "#" + payload.dumps(self._made, None).hex() if self._made != ((), {}) else ""

    @functools.cached_property
    def _here(self) -> Any:
        """The object in this process, entered."""
        args, kwargs = self._made
        here = self._cls.__nubes_raw__(*args, **kwargs)
        for snap in (True, False):
            for name in dir(here):
                if getattr(getattr(type(here), name, None), "__nubes_hook__", None) == ("enter", snap):
                    getattr(here, name)()
        return here


class Method(Calling[..., Any]):
    """One method of an object in the cloud. Calling it plainly, or with `.local`, runs it here."""

    def __init__(self, obj: Obj, name: str, raw: Callable[..., Any]) -> None:
        self._obj = obj
        self._name = name
        self._generator = inspect.isgeneratorfunction(raw) or inspect.isasyncgenfunction(raw)
        functools.update_wrapper(self, raw, updated=())

    @property
    def is_generator(self) -> bool:
        return self._generator

    def _target(self) -> Target:
        return Target(self._obj._cls.spec.name, self._name, self._obj._variant)

    def _client(self) -> Client:
        deployment = self._obj._cls.deployment
        return deployment.client or deployment.ready()

    def local(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the method here, on an object in this process whose `enter` hooks have run."""
        return getattr(self._obj._here, self._name)(*args, **kwargs)

    __call__ = local
