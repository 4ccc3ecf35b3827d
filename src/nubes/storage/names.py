"""Names of shared objects, and the values that go into them."""

from __future__ import annotations

import re
from typing import Any

from nubes import client as clients
from nubes.drivers.local import payload
from nubes.kernel.errors import UsageError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


def checked(kind: str, name: str) -> str:
    """`name`, if it can be one. Raises `UsageError`."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot be the name of a {kind}.", "Use up to 64 letters, digits, dashes and dots.")
    return name


def packed(value: Any) -> bytes:
    """`value` as bytes. Raises `UsageError` if it cannot be pickled."""
    try:
        return payload.dumps(value, None, clients.connect().arguments.by_value)
    except Exception as error:
        raise UsageError(
            f"The value cannot be stored: {type(error).__name__}: {error}.",
            "Store plain data, arrays or importable classes; open files, locks and sockets stay where they are.",
        ) from error


def unpacked(data: bytes) -> Any:
    return payload.loads(data)
