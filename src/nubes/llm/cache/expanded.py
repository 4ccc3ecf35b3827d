"""The same model with a KV head for every query head: what grouped heads were before they were grouped."""

from __future__ import annotations

import msgspec
import numpy as np

from nubes.llm.checkpoint.blocks import Blocks, Floats
from nubes.llm.runtime.rows import Checkpoint

PARTS = ("self_attn.k_proj.weight", "self_attn.v_proj.weight")


class Expanded:
    """A checkpoint whose KV heads stand once for each query head of their group. It computes what the original does."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.shape = msgspec.structs.replace(checkpoint.shape, kv_heads=checkpoint.shape.heads)

    def tensor(self, name: str) -> Floats:
        tensor = self.checkpoint.tensor(name)
        if not name.endswith(PARTS):
            return tensor
        of = self.checkpoint.shape
        heads = tensor.reshape(of.kv_heads, of.head_dim, -1)
        return np.repeat(heads, of.heads // of.kv_heads, axis=0).reshape(of.heads * of.head_dim, -1)

    def raw(self, name: str) -> Blocks:
        if not name.endswith(PARTS):
            return self.checkpoint.raw(name)
        return Blocks("F32", self.tensor(name))
