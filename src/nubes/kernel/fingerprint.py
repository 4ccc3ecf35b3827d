"""One hash for a whole state: equal states give equal hashes in any process, on any day."""

from __future__ import annotations

import hashlib
from collections import deque
from enum import Enum
from typing import Any

import msgspec


def fingerprint(state: Any) -> str:
    """SHA-256 over the plain data reachable from `state`; dicts in insertion order, sets sorted, cycles by first visit."""
    digest = hashlib.sha256()
    seen: dict[int, int] = {}
    keep: list[Any] = []  # ids are only unique while the objects live
    stack: list[Any] = [state]
    while stack:
        item = stack.pop()
        if item is None or isinstance(item, (bool, int, float, str, bytes)):
            digest.update(f"{type(item).__name__}:{item!r};".encode())
            continue
        if id(item) in seen and not isinstance(item, (tuple, frozenset)):
            digest.update(f"ref:{seen[id(item)]};".encode())
            continue
        seen[id(item)] = len(seen)
        keep.append(item)
        parts = _parts(item)
        digest.update(f"{type(item).__qualname__}:{len(parts)};".encode())
        stack.extend(reversed(parts))
    return digest.hexdigest()


def _parts(item: Any) -> list[Any]:
    if isinstance(item, (list, tuple, deque)):
        return list(item)
    if isinstance(item, dict):
        return [part for pair in item.items() for part in pair]
    if isinstance(item, (set, frozenset)):
        return sorted(item, key=repr)
    if isinstance(item, Enum):
        return [item.name]
    if isinstance(item, type) or callable(item):
        return [getattr(item, "__module__", ""), getattr(item, "__qualname__", "")]
    if isinstance(item, msgspec.Struct):
        return [getattr(item, name) for name in item.__struct_fields__]
    if hasattr(item, "__getstate__"):
        return [item.__getstate__()]
    raise TypeError(f"{type(item)} has no place in a state: use plain data")
