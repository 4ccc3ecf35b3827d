"""One hash for a whole state: equal states give equal hashes in any process, on any day."""

from __future__ import annotations

import hashlib
import types
from enum import Enum
from typing import Any

import msgspec

_ROUTINES = (
    types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.MethodDescriptorType,
    types.WrapperDescriptorType, types.MethodWrapperType, types.ClassMethodDescriptorType,
)  # fmt: skip
_VALUES = (tuple, frozenset, type, Enum, *_ROUTINES)


def fingerprint(state: Any) -> str:
    """SHA-256 over all that is reachable from `state`; dicts in insertion order, sets sorted, cycles by first visit.

    Which objects are one and the same counts, except for values that cannot change. Raises `TypeError` for what
    cannot be pickled: such things have no place in a state.
    """
    digest = hashlib.sha256()
    seen: dict[int, int] = {}
    keep: list[Any] = []  # ids are only unique while the objects live
    stack: list[Any] = [state]
    while stack:
        item = stack.pop()
        if item is None or isinstance(item, (bool, int, float, str, bytes)):
            digest.update(f"{type(item).__name__}:{item!r};".encode())
            continue
        if not _is_value(item):
            if id(item) in seen:
                digest.update(f"ref:{seen[id(item)]};".encode())
                continue
            seen[id(item)] = len(seen)
            keep.append(item)
        parts = _parts(item)
        digest.update(f"{type(item).__qualname__}:{len(parts)};".encode())
        stack.extend(reversed(parts))
    return digest.hexdigest()


def _is_value(item: Any) -> bool:
    """Whether two equal ones are the same: a copy that pickle made of a shared default changes no hash."""
    if type(item) in (dict, list, set):
        return False
    if isinstance(item, msgspec.Struct):
        return item.__struct_config__.frozen
    return isinstance(item, _VALUES)


def _parts(item: Any) -> list[Any]:
    if isinstance(item, (list, tuple)):
        return list(item)
    if isinstance(item, (set, frozenset)):
        return sorted(fingerprint(member) for member in item)
    if isinstance(item, dict):
        return [part for pair in item.items() for part in pair]
    if isinstance(item, Enum):
        return [item.name]
    if isinstance(item, (type, *_ROUTINES)):
        return [item.__module__, item.__qualname__]
    if isinstance(item, msgspec.Struct):
        return [getattr(item, name) for name in item.__struct_fields__]
    made = item.__reduce_ex__(4)  # the way pickle takes it apart
    if isinstance(made, str):
        return [made]
    construct, arguments, state, items, pairs = (*made, None, None, None)[:5]
    return [construct, arguments, state, list(items or ()), list(pairs or ())]
