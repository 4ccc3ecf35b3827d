"""A model's weights as the compiled kernels want them: panels of 32 outputs, in one piece of memory."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nubes.kernel.errors import UsageError
from nubes.llm.errors import BrokenModel
from nubes.llm.runtime import memory
from nubes.llm.runtime.rows import Checkpoint, Floats
from nubes.llm.spec import Shape

Format = Literal["fp32", "int8", "int4"]

FP32, INT8, INT4 = range(3)  # kinds of panels, as in kernels.h
_KINDS = {"fp32": FP32, "int8": INT8, "int4": INT4}
_SOURCES = {"F32": 0, "Q4_1": 1, "Q8_0": 2}  # as in pack.c
_PANEL = 32
_HEAD_BYTES, _PART_BYTES = (0, 64, 128), (4096, 1024, 512)  # of a group, and of each 32 inputs in it
_GROUPS = (96, 64, 32)  # of int8: the larger the faster, but with 192 perplexity shows it


class Matrix(ctypes.Structure):
    """`matrix` of kernels.h."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("outputs", ctypes.c_int32),
        ("inputs", ctypes.c_int32),
        ("group", ctypes.c_int32),
        ("data", ctypes.c_void_p),
    )


@dataclass(frozen=True)
class Weights:
    """For each layer queries with keys and values, attention's output, gate with up, down; then embedding and head."""

    matrices: ctypes.Array[Matrix]
    packed: NDArray[np.uint8]  # what they point into
    norms: Floats  # [2 * layers + 1, hidden]


@dataclass(frozen=True)
class _Source:
    """A tensor, and where in its matrix its rows go: sixteen from `column` on, the next sixteen `step` further."""

    name: str
    rows: int
    column: int = 0
    step: int = 16


@dataclass(frozen=True)
class _Plan:
    kind: int
    outputs: int
    inputs: int
    sources: tuple[_Source, ...]
    group: int = 32  # inputs that share a scale

    @property
    def bytes(self) -> int:
        group_bytes = _HEAD_BYTES[self.kind] + self.group // 32 * _PART_BYTES[self.kind]
        return -(-self.outputs // _PANEL) * (self.inputs // self.group) * group_bytes


def check(shape: Shape) -> None:
    """Raise `UsageError` for sizes that the kernels are not made for."""
    sizes = {"hidden": shape.hidden, "ffn": shape.ffn, "head_dim": shape.head_dim}
    for name, size in sizes.items():
        if size % 32:
            raise UsageError(
                f"{name} is {size}: the compiled runtime wants multiples of 32.", "Choose the PyTorch runtime."
            )
    if shape.head_dim > 256 or shape.heads % shape.kv_heads:
        raise UsageError(
            "The compiled runtime wants heads of at most 256, in whole groups.", "Choose the PyTorch runtime."
        )


def pack(library: ctypes.CDLL, checkpoint: Checkpoint, format: Format, threads: int) -> Weights:
    """Read and pack everything. Raises `UsageError` for sizes, `BrokenModel` for tensors that do not fit."""
    shape = checkpoint.shape
    check(shape)
    plans = list(_plans(checkpoint, _KINDS[format]))
    offsets = np.cumsum([0] + [(plan.bytes + 4095) // 4096 * 4096 for plan in plans])
    packed = memory.zeros((int(offsets[-1]),), np.uint8)
    base = packed.ctypes.data

    def one(job: tuple[_Plan, int, _Source]) -> None:
        plan, offset, source = job
        kind, data = _blocks(checkpoint, source.name, (source.rows, plan.inputs))
        library.nubes_pack(
            plan.kind,
            base + offset,
            plan.inputs,
            plan.group,
            source.column,
            source.step,
            _SOURCES[kind],
            data.ctypes.data,
            source.rows,
        )

    jobs = [
        (plan, int(offset), source) for plan, offset in zip(plans, offsets[:-1], strict=True) for source in plan.sources
    ]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, jobs))
    matrices = [
        Matrix(plan.kind, plan.outputs, plan.inputs, plan.group, base + int(offset))
        for plan, offset in zip(plans, offsets[:-1], strict=True)
    ]
    if shape.tied:
        matrices.append(matrices[-1])
    return Weights((Matrix * len(matrices))(*matrices), packed, _norms(checkpoint))


def _group(kind: int, size: int) -> int:
    """The largest group that divides `size`."""
    return next(group for group in _GROUPS if size % group == 0) if kind == INT8 else 32


def _plans(checkpoint: Checkpoint, kind: int) -> Iterator[_Plan]:
    s = checkpoint.shape
    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    hidden, head, ffn = (_group(kind, size) for size in (s.hidden, s.head_dim, s.ffn))
    for i in range(s.layers):
        attention, mlp = f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp."
        yield _Plan(
            kind,
            q + 2 * kv,
            s.hidden,
            (
                _Source(f"{attention}q_proj.weight", q),
                _Source(f"{attention}k_proj.weight", kv, q),
                _Source(f"{attention}v_proj.weight", kv, q + kv),
            ),
            hidden,
        )
        yield _Plan(kind, s.hidden, q, (_Source(f"{attention}o_proj.weight", s.hidden),), head)
        halves = (_Source(f"{mlp}gate_proj.weight", s.ffn, 0, 32), _Source(f"{mlp}up_proj.weight", s.ffn, 16, 32))
        yield _Plan(kind, 2 * s.ffn, s.hidden, halves, hidden)
        yield _Plan(kind, s.hidden, s.ffn, (_Source(f"{mlp}down_proj.weight", s.hidden),), ffn)
    outer = INT8 if kind == INT4 else kind  # few bits hurt most in the embedding and the head
    yield _Plan(outer, s.vocab, s.hidden, (_Source("model.embed_tokens.weight", s.vocab),))
    if not s.tied:
        yield _Plan(outer, s.vocab, s.hidden, (_Source("lm_head.weight", s.vocab),))


def _blocks(checkpoint: Checkpoint, name: str, shape: tuple[int, int]) -> tuple[str, NDArray[Any]]:
    """The tensor as it lies in its file, if the packer knows that kind, or as float32."""
    raw = checkpoint.raw(name)
    if raw.shape != shape:
        raise BrokenModel(f"{name} is {raw.shape} instead of {shape}.", "Download the model again.")
    if raw.kind in _SOURCES:
        return raw.kind, np.ascontiguousarray(raw.data)
    return "F32", np.ascontiguousarray(checkpoint.tensor(name), np.float32)


def _norms(checkpoint: Checkpoint) -> Floats:
    names = [
        f"model.layers.{i}.{part}.weight"
        for i in range(checkpoint.shape.layers)
        for part in ("input_layernorm", "post_attention_layernorm")
    ]
    return np.stack([np.asarray(checkpoint.tensor(name), np.float32) for name in (*names, "model.norm.weight")])
