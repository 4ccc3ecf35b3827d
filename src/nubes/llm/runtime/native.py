"""The compiled runtime: Llama-family decoders on CPU."""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from nubes.kernel.errors import NubesError, UsageError
from nubes.llm.lora.adapter import Adapter
from nubes.llm.runtime import memory, slots
from nubes.llm.runtime.adapted import adapted
from nubes.llm.runtime.build import library
from nubes.llm.runtime.rotary import angles
from nubes.llm.runtime.rows import Checkpoint, Floats, Ints, Rows
from nubes.llm.runtime.weights import Format, Matrix, pack

_I, _P = ctypes.c_int32, ctypes.c_void_p


class _Model(ctypes.Structure):
    """`model` of runtime.h."""

    _fields_ = (
        *((name, _I) for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab")),
        *((name, _I) for name in ("block_size", "byte_kv", "threads")),
        ("eps", ctypes.c_float),
        ("unused", ctypes.c_float),
        ("matrices", ctypes.POINTER(Matrix)),
        *((name, _P) for name in ("norms", "rope", "kv")),
    )


class _Batch(ctypes.Structure):
    """`batch` of runtime.h."""

    _fields_ = (
        *((name, _I) for name in ("rows", "first", "last", "project", "wanted", "unused")),
        *((name, _P) for name in ("tokens", "x", "keep", "positions", "slots", "visible", "sequence", "tables")),
        *((name, _P) for name in ("table_start", "extra", "outputs", "logits", "lora")),
    )


class NativeRuntime:
    """Weights in panels, KV of fp32 with fp32 weights and of int8 with others; `x` and logits are float32 arrays.

    Inputs of int8 and int4 products are rounded to bytes with a scale for each row and 32 of them (as in
    Q8_0 of llama.cpp), or up to 96 of them for int8.
    Threads start at the first step, in a forked child anew, and sleep between steps.
    Raises `NoCompiler` where the extension cannot be built.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        format: Format = "int8",
        blocks: int = 256,
        block_size: int = 16,
        threads: int = 2,
        plain: bool = False,
    ) -> None:
        if block_size % 16 or threads < 1:
            raise UsageError("Blocks have a multiple of 16 slots, and there is at least one thread.")
        self.shape = s = checkpoint.shape
        self.blocks, self.block_size = blocks, block_size
        self.threads = threads
        self._library = declare(library(plain))
        self._weights = pack(self._library, checkpoint, format, threads)
        self._rope = angles(s)
        value_bytes, dtype = (4, np.float32) if format == "fp32" else (1, np.uint8)
        kv = (blocks, s.layers, slots.block_bytes(s, block_size, value_bytes) // s.layers // value_bytes), dtype
        self.kv = memory.zeros(*kv)
        self.slots: slots.Slots = (slots.Floats if format == "fp32" else slots.Bytes)(s, self.kv, block_size)
        self.block_bytes = self.kv.nbytes // blocks
        model = _Model(
            *(s.layers, s.hidden, s.heads, s.kv_heads, s.head_dim, s.ffn, s.vocab),
            *(block_size, format != "fp32", threads, s.norm_eps, 0.0),
            self._weights.matrices,
            *(self._weights.norms.ctypes.data, self._rope.ctypes.data, self.kv.ctypes.data),
        )
        self._logits: Floats = np.empty((0, s.vocab), np.float32)
        self._engine = self._library.nubes_open(ctypes.byref(model))
        if not self._engine:
            raise NubesError("There is no memory for the model's buffers.")
        self.close = weakref.finalize(self, self._library.nubes_close, self._engine)

    def embed(self, tokens: Ints) -> Floats:
        x = np.empty((len(tokens), self.shape.hidden), np.float32)
        tokens = self._tokens(tokens)
        self._run(_Batch(rows=len(tokens), tokens=tokens.ctypes.data, x=x.ctypes.data))
        return x

    def forward(
        self, x: Floats, rows: Rows, first: int = 0, last: int | None = None, keep: Floats | None = None
    ) -> None:
        last = self.shape.layers if last is None else last
        if not 0 <= first <= last <= self.shape.layers:
            raise UsageError(f"There are layers 0 ... {self.shape.layers - 1}.")
        self._run(self._batch(x, rows, first, last, keep))

    def logits(self, x: Floats, rows: Ints | None = None) -> Floats:
        batch = _Batch(rows=len(x), x=self._stream(x, len(x)).ctypes.data)
        return self._finish(batch, np.arange(len(x), dtype=np.int32) if rows is None else rows)

    def step(self, tokens: Ints, rows: Rows, outputs: Ints, keep: Floats | None = None) -> Floats:
        x = np.empty((len(tokens), self.shape.hidden), np.float32)
        tokens = self._tokens(tokens)
        batch = self._batch(x, rows, 0, self.shape.layers, keep)
        batch.tokens = tokens.ctypes.data
        return self._finish(batch, outputs)

    def project(self, layer: int, x: Floats, rows: Rows) -> None:
        if not 0 <= layer < self.shape.layers:
            raise UsageError(f"There are layers 0 ... {self.shape.layers - 1}.")
        batch = self._batch(x, rows, layer, layer + 1, None)
        batch.project = 1
        self._run(batch)

    def place(self, adapter: Adapter, nth: int, block: int) -> None:
        piece = adapter.piece(nth, self.slots.pages.shape[1])
        self.slots.pages[block, : piece.size] = piece

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        for source, target in pairs:
            self.kv[target] = self.kv[source]

    def _tokens(self, tokens: Ints) -> Ints:
        tokens = np.ascontiguousarray(tokens, np.int32)
        if len(tokens) and (tokens.min() < 0 or tokens.max() >= self.shape.vocab):
            raise UsageError(f"A token is outside of the vocabulary, 0 ... {self.shape.vocab - 1}.")
        return tokens

    def _stream(self, x: Floats, rows: int) -> Floats:
        if x.shape != (rows, self.shape.hidden) or x.dtype != np.float32 or not x.flags.c_contiguous:
            raise UsageError(f"x has to be a contiguous float32 array of {rows} rows of {self.shape.hidden}.")
        return x

    def _batch(self, x: Floats, rows: Rows, first: int, last: int, keep: Floats | None) -> _Batch:
        rows.check(self.shape.context, self.blocks, self.block_size)
        if keep is not None and (
            keep.shape != (self.shape.layers, *x.shape) or keep.dtype != np.float32 or not keep.flags.c_contiguous
        ):
            raise UsageError("keep has to be a contiguous float32 array [layers, rows, hidden].")
        batch = _Batch(
            rows=len(rows),
            first=first,
            last=last,
            x=self._stream(x, len(rows)).ctypes.data,
            keep=None if keep is None else keep.ctypes.data,
            positions=rows.positions.ctypes.data,
            slots=rows.slots.ctypes.data,
            visible=rows.visible.ctypes.data,
            sequence=rows.sequence.ctypes.data,
            tables=rows.tables.ctypes.data,
            table_start=rows.table_start.ctypes.data,
            extra=None if rows.extra is None else rows.extra.ctypes.data,
        )
        if rows.lora is not None:
            self._lora = adapted(
                self.shape, self.slots.pages, rows.lora, len(rows), self.threads
            )  # lives for as long as the step
            batch.lora = ctypes.addressof(self._lora)
        return batch

    def _finish(self, batch: _Batch, outputs: Ints) -> Floats:
        outputs = np.ascontiguousarray(outputs, np.int32)
        if len(outputs) and (outputs.min() < 0 or outputs.max() >= batch.rows):
            raise UsageError("Logits are wanted of a row that is not there.")
        logits = self._room(len(outputs))
        batch.wanted, batch.outputs, batch.logits = len(outputs), outputs.ctypes.data, logits.ctypes.data
        self._run(batch)
        return logits

    def _room(self, rows: int) -> Floats:
        """Memory for logits: the last step's again, whose pages are there, unless somebody still holds some of it."""
        if len(self._logits) < rows or sys.getrefcount(self._logits) > 2:
            self._logits = np.empty((rows, self.shape.vocab), np.float32)
        return self._logits[:rows]

    def _run(self, batch: _Batch) -> None:
        if not self.close.alive:
            raise UsageError("This runtime was closed.")
        if batch.rows and self._library.nubes_run(self._engine, ctypes.byref(batch)):
            raise NubesError("There is no memory for a step of this size, or no thread to be had.", "Take fewer rows.")


def declare(extension: ctypes.CDLL) -> ctypes.CDLL:
    """Tell ctypes what the extension's functions take."""
    extension.nubes_open.argtypes, extension.nubes_open.restype = (_P,), _P
    extension.nubes_close.argtypes, extension.nubes_close.restype = (_P,), None
    extension.nubes_run.argtypes, extension.nubes_run.restype = (_P, _P), ctypes.c_int
    extension.nubes_vectors.argtypes, extension.nubes_vectors.restype = (), ctypes.c_char_p
    c_int = ctypes.c_int
    extension.nubes_pack.argtypes = (c_int, _P, c_int, c_int, c_int, c_int, c_int, _P, c_int)
    extension.nubes_pack.restype = c_int
    extension.nubes_measure.argtypes = (c_int, c_int, _P, ctypes.c_long)
    extension.nubes_measure.restype = ctypes.c_double
    return extension


def roofline(threads: int = 2, bytes: int = 512 << 20) -> dict[str, Any]:
    """What this machine does at most: bytes read and float32 and byte operations per second, in our own inner loops."""
    extension = declare(library())
    area = memory.zeros((bytes,), np.uint8)
    area.fill(0x3C)  # as halves and floats, ordinary numbers
    read, floats, integers = (extension.nubes_measure(what, threads, area.ctypes.data, bytes) for what in range(3))
    return {
        "vectors": extension.nubes_vectors().decode(),
        "read_bytes_per_s": read,
        "fp32_per_s": floats,
        "int8_per_s": integers,
    }
