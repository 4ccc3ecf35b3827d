"""Shared dicts and queues in memory, with the operations of `nubes.drivers.local.store_operations`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nubes.kernel.errors import NotFound, UsageError


class _Store:
    def __init__(self, max_items: int) -> None:
        self.max_items = max_items
        self.entries: dict[bytes, bytes] = {}
        self.partitions: dict[str, list[bytes]] = {}


class MemoryStores:
    """What is stored in a simulated day. Waiting is the business of whoever asks."""

    def __init__(self) -> None:
        self._stores: dict[tuple[str, str], _Store] = {}

    def do(self, operation: str, arguments: dict[str, Any]) -> Any:
        """The result of an operation. Raises `NotFound` and `UsageError` as live."""
        answer: Callable[[dict[str, Any]], Any] = getattr(self, operation)
        return answer(arguments)

    def _find(self, arguments: dict[str, Any]) -> _Store:
        kind, name = arguments["kind"], arguments["name"]
        found = self._stores.get((kind, name))
        if found is not None:
            return found
        if not arguments.get("create"):
            near = ", ".join(other for of, other in self._stores if of == kind)
            raise NotFound(
                f"There is no {kind} named {name!r}.",
                f"Write {kind.capitalize()}.from_name({name!r}, create_if_missing=True); there are: {near or 'none'}.",
            )
        return self._make(arguments)

    def _make(self, arguments: dict[str, Any]) -> _Store:
        made = self._stores[arguments["kind"], arguments["name"]] = _Store(int(arguments.get("max_items", 0)))
        return made

    def store_create(self, arguments: dict[str, Any]) -> None:
        kind, name = arguments["kind"], arguments["name"]
        if (kind, name) not in self._stores:
            self._make(arguments)
        elif not arguments.get("allow_existing"):
            raise UsageError(
                f"There is a {kind} named {name!r} already.", "Choose another name, or allow_existing=True."
            )

    def store_list(self, arguments: dict[str, Any]) -> list[str]:
        return sorted(name for kind, name in self._stores if kind == arguments["kind"])

    def store_delete(self, arguments: dict[str, Any]) -> None:
        try:
            self._find({**arguments, "create": False})
            del self._stores[arguments["kind"], arguments["name"]]
        except NotFound:
            if not arguments.get("allow_missing"):
                raise

    def dict_get(self, arguments: dict[str, Any]) -> bytes | None:
        return self._find(arguments).entries.get(arguments["key"])

    def dict_put(self, arguments: dict[str, Any]) -> bool:
        entries = self._find(arguments).entries
        pairs = arguments["pairs"]
        if not arguments.get("skip"):
            entries.update(pairs)
            return True
        before = len(entries)
        for key, value in pairs:
            entries.setdefault(key, value)
        return len(entries) - before == len(pairs)

    def dict_pop(self, arguments: dict[str, Any]) -> bytes | None:
        return self._find(arguments).entries.pop(arguments["key"], None)

    def dict_items(self, arguments: dict[str, Any]) -> list[tuple[bytes | None, bytes | None]]:
        keys, values = arguments["what"] != "values", arguments["what"] != "keys"
        pairs = self._find(arguments).entries.items()
        return [(key if keys else None, value if values else None) for key, value in pairs]

    def dict_len(self, arguments: dict[str, Any]) -> int:
        return len(self._find(arguments).entries)

    def dict_clear(self, arguments: dict[str, Any]) -> None:
        self._find(arguments).entries.clear()

    def queue_take(self, arguments: dict[str, Any]) -> list[bytes]:
        """Up to `count` of the oldest items."""
        items = self._find(arguments).partitions.get(arguments["partition"], [])
        taken = items[: arguments["count"]]
        del items[: len(taken)]
        return taken

    def queue_append(self, arguments: dict[str, Any]) -> bool:
        """Appends all values, or none if there is no room."""
        store, values = self._find(arguments), arguments["values"]
        if store.max_items and len(values) > store.max_items:
            raise UsageError(
                f"{len(values)} items cannot be put at once: the queue holds at most {store.max_items}.", "Put fewer."
            )
        items = store.partitions.setdefault(arguments["partition"], [])
        if store.max_items and len(items) + len(values) > store.max_items:
            return False
        items.extend(values)
        return True

    def queue_items(self, arguments: dict[str, Any]) -> list[bytes]:
        return list(self._find(arguments).partitions.get(arguments["partition"], ()))

    def queue_len(self, arguments: dict[str, Any]) -> int:
        partitions, one = self._find(arguments).partitions, arguments["partition"]
        return sum(map(len, partitions.values())) if one is None else len(partitions.get(one, ()))

    def queue_clear(self, arguments: dict[str, Any]) -> None:
        partitions, one = self._find(arguments).partitions, arguments["partition"]
        for name in list(partitions) if one is None else [one]:
            partitions.pop(name, None)
