"""Writes small models: the same random Llama decoder as a GGUF file and as a Hugging Face folder."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from nubes.llm.checkpoint import llama
from nubes.llm.checkpoint.tokenizer import _BYTES
from nubes.llm.spec import Shape

SHAPE = Shape(layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=96, vocab=264, context=128, norm_eps=2**-17)
TYPES = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q5_0": 6,
    "Q5_1": 7,
    "Q8_0": 8,
    "Q4_K": 12,
    "Q5_K": 13,
    "Q6_K": 14,
    "BF16": 30,
}
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_OF_TYPE = {bool: 7, int: 4, float: 6, str: 8, list: 9}


class Typed:
    """A value of the header with its GGUF type said."""

    def __init__(self, kind: int, value: Any) -> None:
        self.kind, self.value = kind, value


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value(kind: int, what: Any) -> bytes:
    if kind == 8:
        return text(what)
    if kind == 9:
        inner = [one if isinstance(one, Typed) else Typed(_OF_TYPE[type(one)], one) for one in what]
        first = inner[0].kind if inner else 8
        return struct.pack("<IQ", first, len(inner)) + b"".join(value(first, one.value) for one in inner)
    return struct.pack("<" + "BbHhIif?__QQd".replace("__QQd", "xxQqd")[kind], what)


def gguf(
    path: Path,
    metadata: dict[str, Any],
    tensors: dict[str, tuple[str | int, tuple[int, ...], bytes]],
    version: int = 3,
    align: int = 32,
) -> Path:
    """`tensors`: kind, shape with rows first, bytes."""
    out = bytearray(b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata)))
    for key, one in metadata.items():
        typed = one if isinstance(one, Typed) else Typed(_OF_TYPE[type(one)], one)
        out += text(key) + struct.pack("<I", typed.kind) + value(typed.kind, typed.value)
    offset, data = 0, bytearray()
    for name, (kind, shape, raw) in tensors.items():
        number = TYPES[kind] if isinstance(kind, str) else kind
        out += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape[::-1])
        out += struct.pack("<IQ", number, offset)
        data += raw + b"\0" * (-len(raw) % align)
        offset = len(data)
    path.write_bytes(bytes(out) + b"\0" * (-len(out) % align) + bytes(data))
    return path


def weights(shape: Shape = SHAPE, seed: int = 0) -> dict[str, np.ndarray]:
    """Random tensors by Hugging Face's names; whole numbers that every float format holds."""
    rng = np.random.default_rng(seed)
    return {name: rng.integers(-64, 64, size).astype(np.float32) for name, size in llama.tensors(shape)}


def vocabulary() -> tuple[list[str], list[int], list[str]]:
    """Texts, types and merges: the bytes, four merges, three control tokens and one of the user's."""
    merges = ["h e", "l l", "he ll", "hell o"]
    texts = [*_BYTES, *(merge.replace(" ", "") for merge in merges), "<s>", "<|im_start|>", "<|im_end|>", "<tool_call>"]
    return texts, [1] * 260 + [3, 3, 3, 4], merges


def header(shape: Shape = SHAPE) -> dict[str, Any]:
    texts, types, merges = vocabulary()
    return {
        "general.architecture": "llama",
        "llama.block_count": shape.layers,
        "llama.context_length": shape.context,
        "llama.embedding_length": shape.hidden,
        "llama.feed_forward_length": shape.ffn,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": shape.norm_eps,
        "llama.rope.freq_base": shape.rope_theta,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": [Typed(5, one) for one in types],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 260,
        "tokenizer.ggml.eos_token_id": 260,
        "tokenizer.chat_template": TEMPLATE,
    }


def interleaved(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Rows as the GGUF of a Llama has them: row j of a head's first half, then row j of its second, and so on."""
    rows = []
    for head in np.split(matrix, heads):
        half = len(head) // 2
        for j in range(half):
            rows += [head[j], head[half + j]]
    return np.array(rows)


def plain(kind: str, values: np.ndarray) -> bytes:
    if kind == "BF16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return values.astype({"F32": "<f4", "F16": "<f2"}[kind]).tobytes()


def gguf_name(name: str) -> str:
    theirs = {ours: gguf for gguf, ours in llama._OUTER.items()}
    if name in theirs:
        return theirs[name]
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{({ours: gguf for gguf, ours in llama._PARTS.items()})[part]}.weight"


def gguf_tensors(kind: str = "F32", shape: Shape = SHAPE) -> dict[str, tuple[str | int, tuple[int, ...], bytes]]:
    found: dict[str, tuple[str | int, tuple[int, ...], bytes]] = {}
    for name, matrix in weights(shape).items():
        heads = {"q_proj": shape.heads, "k_proj": shape.kv_heads}.get(name.split(".")[-2])
        stored = interleaved(matrix, heads) if heads else matrix
        found[gguf_name(name)] = (kind, matrix.shape, plain(kind, stored))
    return found


def config(shape: Shape = SHAPE) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.ffn,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.context,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": shape.norm_eps,
        "tie_word_embeddings": shape.tied,
        "eos_token_id": 260,
    }


def safetensors(path: Path, tensors: dict[str, tuple[str, np.ndarray]]) -> None:
    index, data = {}, b""
    for name, (kind, matrix) in tensors.items():
        raw = plain(kind, matrix)
        index[name] = {"dtype": kind, "shape": list(matrix.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    head = json.dumps(index).encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(struct.pack("<Q", len(head)) + head + data)


def folder(path: Path, kind: str = "F32", shards: int = 1, **changes: Any) -> Path:
    """Without a tokenizer. `changes` go into config.json."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps({**config(), **changes}))
    items = list(weights().items())
    if shards == 1:
        safetensors(path / "model.safetensors", {name: (kind, matrix) for name, matrix in items})
        return path
    where = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        safetensors(path / file, {name: (kind, matrix) for name, matrix in items[i::shards]})
        where.update({name: file for name, _ in items[i::shards]})
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return path
