"""Results as JSON, read without running any of the functions' code: only plain data and arrays come through."""

from __future__ import annotations

import io
import pickle
from typing import Any

import msgspec

from nubes.drivers.local import payload

_HARMLESS = {
    "builtins": {
        "bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "range", "set", "slice",
        "str", "tuple",
    },
    "collections": {"OrderedDict", "defaultdict", "deque", "Counter"},
    "datetime": {"date", "datetime", "time", "timedelta", "timezone"},
    "decimal": {"Decimal"},
    "fractions": {"Fraction"},
    "uuid": {"UUID", "SafeUUID"},
    "pathlib": {"Path", "PosixPath", "PurePath", "PurePosixPath"},
    "numpy": {"ndarray", "dtype"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.numeric": {"_frombuffer"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy.core.numeric": {"_frombuffer"},
}  # fmt: skip


class NotPlain(ValueError):
    """A value that JSON has no words for."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _HARMLESS.get(module, ()):
            raise NotPlain(
                f"a {module.removeprefix('__nubes_main__.')}.{name}" if module != "__nubes_main__" else f"a {name}"
            )
        return super().find_class(module, name)


def unpickle(data: Any, buffers: Any = None) -> Any:
    """Like `pickle.loads`, for harmless types only. Raises `NotPlain`."""
    return _Unpickler(io.BytesIO(data), buffers=buffers).load()


def to_json(output: bytes) -> bytes:
    """A result's payload as JSON; arrays as lists, bytes as base64, NaN as null. Raises `NotPlain`.

    Shared memory is given back, unless the result is kept for others to read.
    """
    if not output:
        return b"null"
    segment = payload.segment_of(output)
    try:
        return encode(payload.load_mapped(output, unpickle)[0])
    finally:
        if segment and not payload.is_object(segment):
            payload.discard(segment)


def is_quick(output: bytes) -> bool:
    """Whether reading it is a matter of microseconds; else it is left to a thread."""
    return output[:1] != b"S" and len(output) < 65_536 and b"numpy" not in output[:200]


def _hook(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (range, bytearray)) or type(value).__name__ in ("deque", "Counter"):
        return bytes(value) if isinstance(value, bytearray) else dict(value) if hasattr(value, "items") else list(value)
    if type(value).__name__ in ("PosixPath", "PurePosixPath", "Fraction"):
        return str(value)
    raise NotPlain(f"a {type(value).__name__}")


_encoder = msgspec.json.Encoder(enc_hook=_hook)


def encode(value: Any) -> bytes:
    """A value as JSON. Raises `NotPlain`."""
    try:
        return _encoder.encode(value)
    except NotPlain:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise NotPlain(f"a value that JSON cannot hold ({error})") from None
