"""Asking an application which of its instances may go: by a call of a method of its class (Twine's TaskControl)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nubes.drivers.local import payload, plain
from nubes.functions import events as e

if TYPE_CHECKING:
    from nubes.drivers.local.plane import Plane


def ask(plane: Plane, command: e.AskDisruption) -> None:
    """Makes the call. What it returns, a list of ids, is fed back; an error or anything else lets none go."""
    call = e.Submitted(command.call, command.function, method=command.method, variant=command.variant)
    question = payload.dumps(((list(command.pending), list(command.running)), {}), None)

    def answered(allowed: tuple[int, ...]) -> None:
        name = command.function + command.variant
        plane.loop.call_soon(plane.feed, e.DisruptionAnswered(name, command.offer, allowed))

    def complain(text: str) -> None:
        plane.prints(command.call, command.function, "stderr", f"{command.method}, asked who may go, {text}\n")

    plane.loop.call_soon(plane.submit, call, question, _Answer(answered, complain))


class _Answer:
    """The `Sink` of such a call."""

    def __init__(self, then: Callable[[tuple[int, ...]], None], complain: Callable[[str], None]) -> None:
        self._then = then
        self._complain = complain

    def result(self, call: int, status: str, reason: str, output: bytes, released: bool = False) -> None:
        allowed: tuple[int, ...] = ()
        try:
            value: Any = plain.loads(output) if output else ()
            if status == e.SUCCEEDED:
                allowed = tuple(int(id) for id in value)
            else:
                self._complain(reason or f"raised {value[1]}")
        except Exception as error:  # whatever it gave
            self._complain(f"gave no list of ids: {error}")
        self._then(allowed)

    def item(self, call: int, output: bytes) -> None:
        """It does not yield."""

    def printed(self, call: int, function: str, stream: str, text: str) -> None:
        """That is in its function's log."""
