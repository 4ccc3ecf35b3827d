"""KV blocks that give way to others, in the host's memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from nubes.llm.runtime.rows import Runtime


class HostMemory:
    """Room for `blocks` of a runtime's KV, layers from `first` on. Where nothing was saved yet it takes no memory."""

    def __init__(self, runtime: Runtime, blocks: int, first: int = 0) -> None:
        self.kv = runtime.kv[:, first:] if first else runtime.kv
        shape = (blocks, *self.kv.shape[1:])
        if isinstance(self.kv, np.ndarray):
            self.host: Any = np.empty(shape, self.kv.dtype)
        else:
            import torch

            self.host = torch.empty(shape, dtype=self.kv.dtype, pin_memory=self.kv.is_cuda)

    def move(self, loads: Iterable[tuple[int, int]], saves: Iterable[tuple[int, int]]) -> None:
        """First the (host, device) blocks that return, then the (device, host) blocks that leave."""
        for host, device in loads:
            self.kv[device] = self.host[host]
        for device, host in saves:
            self.host[host] = self.kv[device]
