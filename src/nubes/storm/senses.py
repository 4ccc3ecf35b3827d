"""Time, chance and sleep as a user's code has them: put in place once per process, before the user's code is loaded.

Whoever runs the code says by `Senses` what it sees; where there are none, everything is as it always was.
"""

from __future__ import annotations

import datetime
import os
import random
import time
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

_CHANCE = (
    "betavariate", "choice", "choices", "expovariate", "gammavariate", "gauss", "getrandbits", "lognormvariate",
    "normalvariate", "paretovariate", "randbytes", "randint", "random", "randrange", "sample", "seed", "shuffle",
    "triangular", "uniform", "vonmisesvariate", "weibullvariate",
)  # fmt: skip


class Senses:
    """What the code that runs now sees; None: what is real."""

    def wall(self) -> float | None:
        """Epoch seconds."""
        return None

    def monotonic(self) -> float | None:
        return None

    def sleep(self, seconds: float) -> bool:
        """Sleeps; False if that is left to the real one."""
        return False

    def chance(self) -> random.Random | None:
        return None

    def bytes(self, count: int) -> bytes | None:
        """What `os.urandom` gives."""
        return None


_senses = Senses()
_installed = False
_time, _monotonic, _perf_counter, _sleep, _urandom = (
    time.time,
    time.monotonic,
    time.perf_counter,
    time.sleep,
    os.urandom,
)


def install(senses: Senses) -> None:
    """From here on this process's code sees by `senses`."""
    global _senses, _installed
    _senses = senses
    if _installed:
        return
    _installed = True
    _clock("time", _time, lambda: _senses.wall())
    _clock("monotonic", _monotonic, lambda: _senses.monotonic())
    _clock("perf_counter", _perf_counter, lambda: _senses.monotonic())
    time.sleep = _slept  # type: ignore[assignment]
    os.urandom = random._urandom = _drawn  # type: ignore[attr-defined]
    for name in _CHANCE:
        setattr(random, name, _by_chance(name, getattr(random, name)))


def real_time() -> float:
    return _time()


def real_sleep(seconds: float) -> None:
    _sleep(seconds)


def _clock(name: str, real: Callable[[], float], virtual: Callable[[], float | None]) -> None:
    def now() -> float:
        seen = virtual()
        return real() if seen is None else seen

    real_ns = getattr(time, f"{name}_ns")

    def now_ns() -> int:
        seen = virtual()
        return int(real_ns()) if seen is None else int(seen * 1e9)

    setattr(time, name, now)
    setattr(time, f"{name}_ns", now_ns)


def _slept(seconds: float) -> None:
    if not _senses.sleep(seconds):
        _sleep(seconds)


def _drawn(count: int, /) -> bytes:
    seen = _senses.bytes(count)
    return _urandom(count) if seen is None else seen


def _by_chance(name: str, real: Any) -> Any:
    def draw(*args: Any, **kwargs: Any) -> Any:
        chance = _senses.chance()
        return real(*args, **kwargs) if chance is None else getattr(chance, name)(*args, **kwargs)

    draw.__name__ = name
    return draw


# -- datetime, whose classes cannot be changed, but stood in for in the user's modules -------------------------------


class _Looks(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, cls.__mro__[1])

    def __subclasscheck__(cls, other: type) -> bool:
        return issubclass(other, cls.__mro__[1])


class _Datetime(datetime.datetime, metaclass=_Looks):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Any:
        return datetime.datetime.fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls) -> Any:
        return cls.now(datetime.UTC).replace(tzinfo=None)

    @classmethod
    def today(cls) -> Any:
        return cls.now()

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return datetime.datetime(*args, **kwargs)


class _Date(datetime.date, metaclass=_Looks):
    @classmethod
    def today(cls) -> Any:
        return datetime.date.fromtimestamp(time.time())

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return datetime.date(*args, **kwargs)


_module = SimpleNamespace(**{**vars(datetime), "datetime": _Datetime, "date": _Date})


def dress(module: ModuleType) -> None:
    """Has the classes of `datetime` in a user's module tell the time that the senses do."""
    space = vars(module)
    for name, value in list(space.items()):
        if value is datetime:
            space[name] = _module
        elif value is datetime.datetime:
            space[name] = _Datetime
        elif value is datetime.date:
            space[name] = _Date
