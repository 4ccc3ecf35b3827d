"""Values that functions gave, read without running any of their code: numbers, text, lists, tuples, dicts."""

from __future__ import annotations

import io
import pickle
from typing import Any

from nubes.drivers.local import payload


def loads(output: bytes) -> Any:
    """The value of a payload. Raises `pickle.UnpicklingError` if it is anything else than plain data."""
    return payload.load_mapped(output, lambda data, **_: _Plain(io.BytesIO(data)).load())[0]


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} is no plain data.")
