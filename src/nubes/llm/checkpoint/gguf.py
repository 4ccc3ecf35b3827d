"""GGUF files, versions 2 and 3: a header of named values, a table of tensors, and the tensors' bytes.

The file is mapped, not read: a tensor costs nothing until somebody looks at its values.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from nubes.llm.checkpoint.blocks import DTYPES, Blocks, block_size
from nubes.llm.errors import BrokenModel

AGAIN = "Download it again, or convert it again."

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_DEEPEST = 4  # arrays within arrays; nobody writes more than two

_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


class Entry(NamedTuple):
    """Where a tensor lies. `shape` is rows first, as numpy has it; the file has it the other way round."""

    kind: str
    shape: tuple[int, ...]
    start: int  # bytes into the file


class Gguf:
    """An open GGUF file: `metadata` by key, `entries` by tensor name. Raises `BrokenModel` for what it cannot read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                # Private: arrays are writable, as PyTorch wants them, but the file stays as it is.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except ValueError:
            self._broken("is empty.")
        except OSError as error:
            raise BrokenModel(
                f"{path} cannot be read: {error.strerror}.", "Check the path and its permissions."
            ) from None
        self.bytes = len(self._map)
        self._at = 0
        self.metadata: dict[str, Any] = {}
        self.entries: dict[str, Entry] = {}
        try:
            self._header()
        except UnicodeDecodeError:
            self._broken(f"is damaged: there is text that is not UTF-8 near byte {self._at}.")

    def blocks(self, name: str) -> Blocks:
        """A tensor as it lies in the file; no copy. Raises KeyError for a name that is not there."""
        kind, shape, start = self.entries[name]
        across = shape[-1] // block_size(kind)
        count = int(np.prod(shape[:-1], dtype=np.int64)) * across
        data = np.frombuffer(self._map, DTYPES[kind], count, start)
        return Blocks(kind, data.reshape(*shape[:-1], across))

    def _broken(self, what: str, hint: str = AGAIN) -> NoReturn:
        raise BrokenModel(f"{self.path} {what}", hint) from None

    def _header(self) -> None:
        if self._map[:4] != b"GGUF":
            self._broken("is not a GGUF file.", "Name a .gguf file or a Hugging Face folder.")
        self._at = 4
        version = self._number("I")
        if version not in (2, 3):
            order = " (or it was written for a big-endian machine)" if version & 0xFFFF == 0 else ""
            self._broken(f"is GGUF version {version}{order}; versions 2 and 3 are supported.", "Convert it again.")
        tensors, keys = self._number("Q"), self._number("Q")
        for _ in range(keys):
            key = self._text()
            self.metadata[key] = self._value(self._number("I"))
        table = [self._tensor() for _ in range(tensors)]
        align = self.metadata.get("general.alignment", 32)
        if not isinstance(align, int) or align <= 0:
            self._broken(f"is damaged: an alignment of {align}.")
        data = -(-self._at // align) * align
        for name, kind, shape, offset in table:
            self._enter(name, kind, shape, data + offset)

    def _enter(self, name: str, kind: str, shape: tuple[int, ...], start: int) -> None:
        block = block_size(kind)
        if name in self.entries or 0 in shape or shape[-1] % block:
            self._broken(f"is damaged: tensor {name} is there twice, or not of whole blocks: {shape} as {kind}.")
        values = 1
        for size in shape:
            values *= size
        end = start + values // block * DTYPES[kind].itemsize
        if end > self.bytes:
            self._broken(f"is cut short: {name} ends at byte {end:,} of {self.bytes:,}.")
        self.entries[name] = Entry(kind, shape, start)

    def _tensor(self) -> tuple[str, str, tuple[int, ...], int]:
        name = self._text()
        dimensions = self._number("I")
        if not 1 <= dimensions <= 4:
            self._broken(f"is damaged: tensor {name} has {dimensions} dimensions.")
        shape = tuple(self._number("Q") for _ in range(dimensions))[::-1]
        number = self._number("I")
        kind = _TYPES.get(number, f"type {number}")
        if kind not in DTYPES:
            known = ", ".join(DTYPES)
            self._broken(f"stores {name} as {kind}, which is not supported.", f"Take a file with only these: {known}.")
        return name, kind, shape, self._number("Q")

    def _take(self, size: int) -> int:
        """Step over `size` bytes; where they start."""
        start = self._at
        if start + size > self.bytes:
            self._broken(f"is cut short: its header goes on after byte {self.bytes:,}, where the file ends.")
        self._at = start + size
        return start

    def _number(self, code: str) -> Any:
        return struct.unpack_from("<" + code, self._map, self._take(struct.calcsize("<" + code)))[0]

    def _text(self) -> str:
        size = self._number("Q")
        start = self._take(size)
        return self._map[start : start + size].decode()

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind == _BOOL:
            return bool(self._number("B"))
        if kind == _STRING:
            return self._text()
        if kind == _ARRAY and depth < _DEEPEST:
            return self._array(depth)
        self._broken(f"is damaged: there is a value of unknown type {kind} near byte {self._at}.")

    def _array(self, depth: int) -> list[Any]:
        kind, count = self._number("I"), self._number("Q")
        if kind in _NUMBERS or kind == _BOOL:
            dtype = np.dtype("?" if kind == _BOOL else "<" + np.dtype(_NUMBERS[kind]).str[1:])
            start = self._take(count * dtype.itemsize)
            return list(np.frombuffer(self._map, dtype, count, start).tolist())
        if kind == _STRING:
            return self._texts(count)
        return [self._value(kind, depth + 1) for _ in range(count)]

    def _texts(self, count: int) -> list[str]:
        """As many strings: a vocabulary has some 100,000, so this is a loop without calls of our own."""
        buffer, at, end, texts = self._map, self._at, self.bytes, []
        size = struct.Struct("<Q").unpack_from
        for _ in range(count):
            start = at + 8
            at = end + 1 if start > end else start + size(buffer, at)[0]
            if at > end:
                self._take(end)  # says that it is cut short
            texts.append(buffer[start:at].decode())
        self._at = at
        return texts
