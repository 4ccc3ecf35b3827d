"""A model's files, opened: what kind of model it is, its weights under Hugging Face's names, its tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Protocol

from nubes.kernel.errors import NotFound, UsageError
from nubes.llm.checkpoint import fast, gguf_model, huggingface, llama
from nubes.llm.checkpoint.blocks import Blocks, Floats, dequantise
from nubes.llm.checkpoint.finding import find
from nubes.llm.checkpoint.gguf import AGAIN, Gguf
from nubes.llm.errors import BrokenModel
from nubes.llm.live import Tokens
from nubes.llm.spec import Shape


class Weights(Protocol):
    bytes: int
    shapes: Mapping[str, tuple[int, ...]]

    def raw(self, name: str) -> Blocks: ...


class Checkpoint:
    """Tensors are read when asked for. Arrays may be the file's own pages: written to, they change for all who hold
    them in this process, and the file does not."""

    def __init__(self, name: str, path: Path, shape: Shape, weights: Weights, tokens: Callable[[], Tokens]) -> None:
        self.name = name
        self.path = path
        self.shape = shape
        self.bytes = weights.bytes  # of its files
        self._weights = weights
        self._tokens = tokens
        _check(path, shape, weights)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in llama.tensors(self.shape)]

    @cached_property
    def tokens(self) -> Tokens:
        tokens = self._tokens()
        if tokens.vocab > self.shape.vocab:
            what = f"its tokenizer has {tokens.vocab} tokens, and its embedding {self.shape.vocab}"
            raise BrokenModel(f"{self.path} is damaged: {what}.", AGAIN)
        return tokens

    def raw(self, name: str) -> Blocks:
        """A tensor as it is stored; `blocks.affine` unpacks what is quantised. A tied head is the embedding."""
        if name == llama.HEAD and self.shape.tied:
            name = llama.EMBEDDING
        if name not in self._weights.shapes:
            raise NotFound(f"{self.path} has no tensor {name}.", f"The first ones: {', '.join(self.names[:4])}.")
        return self._weights.raw(name)

    def tensor(self, name: str) -> Floats:
        """A tensor's values: (outputs, inputs) for a matrix."""
        return dequantise(self.raw(name))


def load(model: str | Path) -> Checkpoint:
    """Open a model: a name or path that `find` knows.

    Raises `NotFound` if there is none, `UsageError` for a kind that is not supported, `BrokenModel` for damaged files.
    """
    path = find(str(model))
    name = path.stem if path.is_file() else path.name
    if isinstance(model, str) and not Path(model).expanduser().exists():
        name = model  # it was found by it
    if path.is_file():
        return _gguf(name, path)
    if (path / fast.ABOUT).exists():
        return fast.open_fast(name, path)
    shape = huggingface.shape_of(path)

    def folder_tokens() -> Tokens:
        from nubes.llm.checkpoint.tokenizer import from_folder

        return from_folder(path)

    return Checkpoint(name, path, shape, huggingface.FolderWeights(path), folder_tokens)


def _gguf(name: str, path: Path) -> Checkpoint:
    gguf = Gguf(path)
    shape = gguf_model.shape_of(gguf)

    def tokens() -> Tokens:
        from nubes.llm.checkpoint.tokenizer import from_gguf

        return from_gguf(gguf)

    return Checkpoint(name, path, shape, gguf_model.GgufWeights(gguf, shape), tokens)


def _check(path: Path, shape: Shape, weights: Weights) -> None:
    """That the tensors are those of such a decoder, no more and no less."""
    positive = (shape.layers, shape.hidden, shape.heads, shape.kv_heads, shape.head_dim, shape.ffn, shape.context)
    sound = min(positive) > 0 and shape.heads % shape.kv_heads == 0 and shape.head_dim % 2 == 0
    if not (sound and shape.rope_theta > 0 and shape.norm_eps >= 0):
        raise BrokenModel(f"{path} is damaged: its shape makes no sense: {shape}.", AGAIN)
    expected: set[str] = set()
    for name, size in llama.tensors(shape):
        there = weights.shapes.get(name)
        if there is None:
            raise BrokenModel(f"{path} lacks the tensor {name}.", AGAIN)
        if there != size:
            raise BrokenModel(f"{path} is damaged: {name} is {there} where the model wants {size}.", AGAIN)
        expected.add(name)
    # A tied head may be stored all the same, and old files hold rope's constants.
    extra = {name for name in weights.shapes if name not in expected and name != llama.HEAD}
    extra = {name for name in extra if not name.endswith("rotary_emb.inv_freq")}
    if extra:
        few = ", ".join(sorted(extra)[:4])
        raise UsageError(f"{path} has tensors that a Llama decoder does not: {few}.", "Take a plain Llama model.")
