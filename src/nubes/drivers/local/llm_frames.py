"""The commands of a fleet's controller, as frames to the engines that shall follow them."""

from __future__ import annotations

from collections.abc import Callable

from nubes.drivers.local.llm_answers import Asked
from nubes.drivers.local.wire import pack
from nubes.llm.cluster import events as e


def receiver(command: e.Command) -> int:
    """The number of the engine that a command is for."""
    number: int = getattr(command, "target" if isinstance(command, e.Copy | e.Land | e.Warm) else "number")
    return number


def frame_of(command: e.Command, asked: Asked | None, kv_file: Callable[[int], str]) -> bytes:
    """What to send for a command; b"" if its request was cancelled meanwhile, which the engine was told.

    `kv_file`: that of an engine, by its number.
    """
    kind = type(command).__name__.lower()
    match command:
        case e.Cancel(id) | e.Stay(id) | e.Release(id) | e.Unreserve(id):
            return pack(kind, id)
        case e.Look(id, turn) | e.Depart(id, turn):
            return pack(kind, id, turn)
        case e.Reserve(id, turn, _, blocks):
            return pack(kind, id, turn, blocks)
        case _ if asked is None:
            return b""
        case e.Dispatch(id):
            return pack("submit", id, asked.request, asked.said)
        case e.Copy(id, turn, source, _, first, end):
            return pack(kind, id, turn, kv_file(source), asked.source[first:end], asked.target[first:end])
        case e.Land(id, turn):
            return pack(kind, id, turn, asked.request, asked.said)
        case e.Warm(id, turn):
            return pack(kind, id, turn, [*asked.request.prompt, *asked.said], asked.request)
    raise TypeError(f"{command!r} is no command to an engine")
