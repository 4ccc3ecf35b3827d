"""A Llama-family decoder out of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from nubes.kernel.errors import UsageError
from nubes.llm.checkpoint import llama, rope
from nubes.llm.checkpoint.blocks import Blocks, dequantise
from nubes.llm.checkpoint.gguf import AGAIN, Gguf
from nubes.llm.errors import BrokenModel
from nubes.llm.spec import Shape

_ROPE = "rope_freqs.weight"  # what rope's frequencies are divided by; Llama 3.1 and later
T = TypeVar("T", int, float, str, list[Any])


def field(gguf: Gguf, key: str, kind: type[T], default: T | None = None) -> T:
    """A value of the header. Raises `BrokenModel` if it is of another kind, or not there and without default."""
    value = gguf.metadata.get(key, default)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        what = "is missing" if value is None else f"is {value!r:.80}, not of type {kind.__name__}"
        raise BrokenModel(f"{gguf.path} is damaged: {key} {what}.", AGAIN)
    return value


def shape_of(gguf: Gguf) -> Shape:
    """Raises `UsageError` for models of other families."""
    family = field(gguf, "general.architecture", str)
    if family != "llama":
        raise UsageError(f"{gguf.path} is a model of the family {family}.", "Supported: llama (Mistral included).")
    if field(gguf, "split.count", int, 1) > 1:
        raise UsageError(f"{gguf.path} is one part of a split model.", "Join them: `llama-gguf-split --merge`.")
    if field(gguf, "llama.expert_count", int, 0):
        raise UsageError(f"{gguf.path} is a mixture of experts, which is not supported.", "Take a dense Llama model.")
    hidden, heads = (field(gguf, f"llama.{key}", int) for key in ("embedding_length", "attention.head_count"))
    head_dim = field(gguf, "llama.attention.key_length", int, hidden // max(1, heads))
    if field(gguf, "llama.rope.dimension_count", int, head_dim) != head_dim:
        raise UsageError(f"{gguf.path} turns only part of each head, which is not supported.", "Take a Llama model.")
    embedding = gguf.entries.get("token_embd.weight")
    return Shape(
        layers=field(gguf, "llama.block_count", int),
        hidden=hidden,
        heads=heads,
        kv_heads=field(gguf, "llama.attention.head_count_kv", int, heads),
        head_dim=head_dim,
        ffn=field(gguf, "llama.feed_forward_length", int),
        vocab=embedding.shape[0] if embedding else 0,
        context=field(gguf, "llama.context_length", int),
        rope_theta=field(gguf, "llama.rope.freq_base", float, 10_000.0),
        rope_factors=_rope_factors(gguf, head_dim),
        norm_eps=field(gguf, "llama.attention.layer_norm_rms_epsilon", float),
        tied="output.weight" not in gguf.entries,
    )


def _rope_factors(gguf: Gguf, head_dim: int) -> tuple[float, ...]:
    if _ROPE in gguf.entries:
        found = tuple(dequantise(gguf.blocks(_ROPE)).ravel().tolist())
        if len(found) != head_dim // 2 or not all(factor > 0 for factor in found):
            raise BrokenModel(f"{gguf.path} is damaged: {_ROPE} does not fit heads of {head_dim}.", AGAIN)
        return found
    factor = field(gguf, "llama.rope.scale_linear", float, 1.0)
    kind = field(gguf, "llama.rope.scaling.type", str, "linear")
    values = {"factor": field(gguf, "llama.rope.scaling.factor", float, factor)}
    return rope.factors(kind, 0.0, head_dim, values)


class GgufWeights:
    """The file's tensors under Hugging Face's names and in its order of rows."""

    def __init__(self, gguf: Gguf, shape: Shape) -> None:
        self._gguf = gguf
        self._heads = {"q_proj": shape.heads, "k_proj": shape.kv_heads}
        self.bytes = gguf.bytes
        self._names = {llama.name_of(name): name for name in gguf.entries if name != _ROPE}
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: gguf.entries[theirs].shape for name, theirs in self._names.items()
        }

    def raw(self, name: str) -> Blocks:
        blocks = self._gguf.blocks(self._names[name])
        heads = self._heads.get(name.split(".")[-2])
        if heads is None:
            return blocks
        # GGUF has the two halves that rope turns together interleaved: rows 0, d/2, 1, d/2 + 1, ... of each head.
        rows, width = blocks.data.shape
        halves = blocks.data.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2)
        return Blocks(blocks.kind, np.ascontiguousarray(halves).reshape(rows, width))
