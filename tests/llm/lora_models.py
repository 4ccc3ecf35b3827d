"""A small random model, with and without adapters merged into its matrices."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nubes.llm.checkpoint.blocks import Blocks
from nubes.llm.lora.adapter import Adapter
from nubes.llm.spec import Shape

SHAPE = Shape(layers=2, hidden=96, heads=3, kv_heads=1, head_dim=32, ffn=64, vocab=64, context=256)


class Model:
    """A checkpoint in memory."""

    def __init__(self, tensors: Mapping[str, Any], shape: Shape = SHAPE) -> None:
        self.tensors = tensors
        self.shape = shape

    def tensor(self, name: str) -> Any:
        return self.tensors[name]

    def raw(self, name: str) -> Blocks:
        tensor = self.tensors[name]
        return Blocks("F32", tensor)

    def merged(self, adapter: Adapter) -> Model:
        """The model with the adapter's change made to its matrices."""
        changed = dict(self.tensors)
        for i in range(self.shape.layers):
            for target, (a, b) in adapter.matrices(i).items():
                name = f"model.layers.{i}.self_attn.{target}.weight"
                changed[name] = changed[name] + np.float32(adapter.scale) * (b @ a)
        return Model(changed, self.shape)


def model(seed: int = 0, shape: Shape = SHAPE) -> Model:
    draw, s = np.random.default_rng(seed), shape
    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim

    def matrix(outputs: int, inputs: int) -> Any:
        return (draw.standard_normal((outputs, inputs)) / inputs**0.5).astype(np.float32)

    tensors = {
        "model.embed_tokens.weight": matrix(s.vocab, s.hidden) * 8,
        "model.norm.weight": np.ones(s.hidden, np.float32),
    }
    for i in range(s.layers):
        at = f"model.layers.{i}."
        for name, outputs, inputs in (
            ("self_attn.q_proj", q, s.hidden), ("self_attn.k_proj", kv, s.hidden), ("self_attn.v_proj", kv, s.hidden),
            ("self_attn.o_proj", s.hidden, q), ("mlp.gate_proj", s.ffn, s.hidden), ("mlp.up_proj", s.ffn, s.hidden),
            ("mlp.down_proj", s.hidden, s.ffn),
        ):  # fmt: skip
            tensors[f"{at}{name}.weight"] = matrix(outputs, inputs)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}{name}.weight"] = (1 + 0.1 * draw.standard_normal(s.hidden)).astype(np.float32)
    return Model(tensors, shape)


def saved(folder: Path, adapter: Adapter, **config: Any) -> Path:
    """A folder as PEFT leaves it."""
    numpy = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    tensors = {}
    for i in range(len(adapter.pages) // adapter.rank):
        for target, (a, b) in adapter.matrices(i).items():
            at = f"base_model.model.model.layers.{i}.self_attn.{target}"
            tensors[f"{at}.lora_A.weight"], tensors[f"{at}.lora_B.weight"] = a.copy(), b.copy()
    folder.mkdir()
    numpy.save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": adapter.rank, "lora_alpha": 2 * adapter.rank, **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder
