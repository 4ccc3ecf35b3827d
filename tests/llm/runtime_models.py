"""Small random models for the tests of the runtimes."""

from __future__ import annotations

import zlib

import numpy as np

from nubes.llm.checkpoint.blocks import DTYPES, Blocks, dequantise
from nubes.llm.spec import Shape

SMALL = Shape(layers=2, hidden=64, heads=4, kv_heads=2, head_dim=32, ffn=96, vocab=101, context=256)
SHAPES = [
    SMALL,
    Shape(layers=2, hidden=96, heads=6, kv_heads=2, head_dim=64, ffn=160, vocab=64, context=256, tied=False),
    Shape(layers=1, hidden=128, heads=4, kv_heads=4, head_dim=32, ffn=352, vocab=33, context=128, rope_theta=5e5),
    Shape(layers=1, hidden=128, heads=128, kv_heads=1, head_dim=32, ffn=64, vocab=50, context=128, tied=False),
    Shape(layers=1, hidden=96, heads=3, kv_heads=1, head_dim=96, ffn=32, vocab=40, context=128, norm_eps=1e-3),
]


class Random:
    """A checkpoint of random weights; `kinds` says which tensors lie there as blocks."""

    def __init__(self, shape: Shape, std: float = 0.1, matrices: str = "F32", embedding: str = "F32") -> None:
        self.shape, self.std, self.kinds = shape, std, (matrices, embedding)

    def raw(self, name: str) -> Blocks:
        s, rng = self.shape, np.random.default_rng(zlib.crc32(name.encode()))
        if "norm" in name:
            return Blocks("F32", (1 + 0.1 * rng.standard_normal(s.hidden)).astype(np.float32))
        q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
        sizes = {
            "q_proj": (q, s.hidden), "k_proj": (kv, s.hidden), "v_proj": (kv, s.hidden), "o_proj": (s.hidden, q),
            "gate_proj": (s.ffn, s.hidden), "up_proj": (s.ffn, s.hidden), "down_proj": (s.hidden, s.ffn),
            "embed_tokens": (s.vocab, s.hidden), "lm_head": (s.vocab, s.hidden),
        }  # fmt: skip
        part = name.split(".")[-2]
        rows, columns = sizes[part]
        kind = self.kinds[part in ("embed_tokens", "lm_head")]
        if kind == "F32":
            return Blocks(kind, (rng.standard_normal((rows, columns)) * self.std).astype(np.float32))
        data = np.zeros((rows, columns // 32), DTYPES[kind])
        data["scale"] = self.std / (4 if kind == "Q4_1" else 64) * rng.uniform(0.5, 1.5, data.shape)
        if kind == "Q4_1":
            data["min"] = -self.std * rng.uniform(1.5, 2.5, data.shape)
            data["quants"] = rng.integers(0, 256, data["quants"].shape)
        else:
            data["quants"] = rng.integers(-127, 128, data["quants"].shape)
        return Blocks(kind, data)

    def tensor(self, name: str) -> np.ndarray:
        return dequantise(self.raw(name))
