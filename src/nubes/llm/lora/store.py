"""The adapters of an engine, in host memory."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path

from numpy.typing import DTypeLike

from nubes.kernel.errors import NotFound, UsageError
from nubes.llm.lora.adapter import Adapter
from nubes.llm.lora.peft import load_adapter
from nubes.llm.lora.segments import Placed
from nubes.llm.runtime.rows import Runtime


class Store:
    """Adapters by name, as users know them, and by key, for as long as a request needs them.

    `sizes` has the blocks of each by its key.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.shape = runtime.shape
        self.block_values = runtime.slots.pages.shape[1]
        self.dtype: DTypeLike = runtime.slots.dtype
        self.names: dict[str, Adapter] = {}
        self.sizes: dict[str, int] = {}
        self._alive: weakref.WeakValueDictionary[str, Adapter] = weakref.WeakValueDictionary()
        self._placed: dict[str, tuple[Sequence[int], Placed]] = {}

    def load(self, name: str, path: str | Path) -> Adapter:
        """Reads a folder as PEFT saves it. Raises `UsageError`, `NotFound`, `BrokenModel`."""
        if not name or any(letter.isspace() for letter in name):
            raise UsageError(f"{name!r} is no name for an adapter.", "Use one without spaces.")
        self._free(name)
        return self.add(load_adapter(name, path, self.shape, self.dtype))

    def add(self, adapter: Adapter) -> Adapter:
        """Raises `UsageError` if there is one of that name."""
        self._free(adapter.name)
        self.sizes[adapter.key] = adapter.blocks(self.block_values)
        weakref.finalize(adapter, self.sizes.pop, adapter.key, None)
        self._alive[adapter.key] = adapter
        self.names[adapter.name] = adapter
        return adapter

    def _free(self, name: str) -> None:
        if name in self.names:
            raise UsageError(f"There is an adapter {name!r} already.", "Unload it first, or use another name.")

    def remove(self, name: str) -> None:
        """Nobody can ask for it any more; requests that have it go on. Raises `NotFound`."""
        if self.names.pop(name, None) is None:
            raise NotFound(f"There is no adapter {name!r}.", f"There are: {', '.join(self.names) or 'none'}.")

    def get(self, name: str) -> Adapter:
        """Raises `NotFound`."""
        adapter = self.names.get(name)
        if adapter is None:
            raise NotFound(f"There is no adapter {name!r}.", f"There are: {', '.join(self.names) or 'none'}.")
        return adapter

    def of(self, key: str) -> Adapter:
        return self._alive[key]

    def placed(self, key: str, blocks: Sequence[int]) -> Placed:
        """The adapter in these blocks; asked with the same list again, the same one."""
        known = self._placed.get(key)
        if known is None or known[0] is not blocks:
            if len(self._placed) > 1024:
                self._placed.clear()
            known = self._placed[key] = (blocks, Placed(self.of(key), blocks, self.block_values))
        return known[1]
