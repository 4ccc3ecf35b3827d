"""Decorators that mark what users write, and schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from nubes.functions import calendar
from nubes.functions.spec import Batching, Schedule, Web
from nubes.kernel.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])


def _marks(name: str, value: Any) -> Callable[[F], F]:
    def mark(target: F) -> F:
        if hasattr(target, "__nubes_raw__"):
            own = getattr(target, "name", "the function")
            raise UsageError(f"A decorator stands above @app.function() of {own}.", "Put @app.function() on top.")
        setattr(target, name, value)
        return target

    return mark


def refuse_bare(argument: Any, name: str) -> None:
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


def install_parameters(raw: type) -> None:
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
