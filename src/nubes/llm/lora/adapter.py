"""An adapter: low-rank matrices beside a model's own, cut into pages that blocks of KV can hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nubes.kernel.errors import UsageError
from nubes.llm.spec import Shape

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
MAX_RANK = 512  # as in lora.h

Floats = NDArray[np.float32]
Pair = tuple[Floats, Floats]  # A [rank, inputs] and B [outputs, rank]


def sizes(shape: Shape) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of each matrix that may be adapted."""
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return {
        "q_proj": (shape.hidden, q), "k_proj": (shape.hidden, kv), "v_proj": (shape.hidden, kv),
        "o_proj": (q, shape.hidden),
    }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Layout:
    """Where in a page the rows of A and the columns of B are, in values; -1: not adapted."""

    a: tuple[int, ...]
    b: tuple[int, ...]
    page: int  # its values

    @classmethod
    def of(cls, shape: Shape, targets: Sequence[str]) -> Layout:
        """In the order in which a layer reads them: what goes into queries, keys and values first."""
        a, b, at = [-1] * 4, [-1] * 4, 0
        size = sizes(shape)
        for half in (TARGETS[:3], TARGETS[3:]):
            for places, side in ((a, 0), (b, 1)):
                for target in half:
                    if target in targets:
                        places[TARGETS.index(target)] = at
                        at += size[target][side]
        return cls(tuple(a), tuple(b), at)


@dataclass(frozen=True, eq=False)
class Adapter:
    """`pages` [layers * rank, page]: page `layer * rank + j` is row j of every A and column j of every B of the layer.

    `key` is its own as long as the process lives: what is cached for one never counts for another of the same name.
    """

    name: str
    rank: int
    scale: float
    targets: tuple[str, ...]
    layout: Layout
    pages: NDArray[Any]
    key: str = field(default="")

    def __post_init__(self) -> None:
        global _made
        _made += 1
        if not self.key:
            object.__setattr__(self, "key", f"{self.name}#{_made}")

    def blocks(self, block_values: int) -> int:
        """Blocks of so many values that it takes."""
        return ceil(len(self.pages) / per_block(self.layout.page, block_values))

    def piece(self, nth: int, block_values: int) -> NDArray[Any]:
        """What lies in its `nth` block."""
        per = per_block(self.layout.page, block_values)
        return self.pages[nth * per : (nth + 1) * per].reshape(-1)

    def matrices(self, layer: int) -> dict[str, Pair]:
        """A and B of each target of a layer, as float32; what is added to the target's matrix is scale * B A."""
        rows = self.pages[layer * self.rank : (layer + 1) * self.rank].astype(np.float32)
        starts = sorted({at for at in (*self.layout.a, *self.layout.b) if at >= 0} | {self.layout.page})
        end = dict(pairwise(starts))
        return {
            target: (rows[:, a : end[a]], rows[:, b : end[b]].T)
            for target, a, b in zip(TARGETS, self.layout.a, self.layout.b, strict=True)
            if a >= 0
        }


_made = 0


def per_block(page: int, block_values: int) -> int:
    """Pages that a block holds. Raises `UsageError` if it does not hold one."""
    if page > block_values:
        raise UsageError(
            f"A page of an adapter ({page} values) exceeds a KV block ({block_values}).", "Use larger blocks."
        )
    return block_values // page


def adapter(
    name: str, shape: Shape, scale: float, layers: Sequence[Mapping[str, Pair]], dtype: DTypeLike = np.float32
) -> Adapter:
    """From A and B of each layer's targets, all of one rank. Raises `UsageError` for sizes that are not the model's."""
    targets = tuple(target for target in TARGETS if target in layers[0])
    rank = len(layers[0][targets[0]][0])
    if not 1 <= rank <= MAX_RANK:
        raise UsageError(f"Adapter {name!r} has rank {rank}.", f"Ranks go from 1 to {MAX_RANK}.")
    layout, size = Layout.of(shape, targets), sizes(shape)
    pages = np.empty((shape.layers, rank, layout.page), dtype)
    if len(layers) != shape.layers:
        raise UsageError(
            f"Adapter {name!r} has {len(layers)} layers, the model {shape.layers}.", "It is for another model."
        )
    for i, layer in enumerate(layers):
        for target in targets:
            (a, b), (inputs, outputs), at = layer[target], size[target], TARGETS.index(target)
            if a.shape != (rank, inputs) or b.shape != (outputs, rank):
                raise UsageError(
                    f"Adapter {name!r} has {target} of {b.shape[0]} x {a.shape[1]}, the model {outputs} x {inputs}.",
                    "It is for another model.",
                )
            pages[i, :, layout.a[at] : layout.a[at] + inputs] = a
            pages[i, :, layout.b[at] : layout.b[at] + outputs] = b.T
    return Adapter(name, rank, scale, targets, layout, pages.reshape(-1, layout.page))


def random_adapter(
    name: str, shape: Shape, rank: int, seed: int = 0, dtype: DTypeLike = np.float32, targets: Sequence[str] = TARGETS,
    strength: float = 0.05,
) -> Adapter:  # fmt: skip
    """An adapter as training could have left it: A as it is initialised, B a few per cent of a matrix's own size."""
    draw, size = np.random.default_rng((seed, rank)), sizes(shape)
    layers: list[dict[str, Pair]] = []
    for _ in range(shape.layers):
        layer = {}
        for target in targets:
            inputs, outputs = size[target]
            a = draw.uniform(-1, 1, (rank, inputs)).astype(np.float32) * inputs**-0.5
            b = draw.standard_normal((outputs, rank)).astype(np.float32) * strength * rank**-0.5
            layer[target] = (a, b)
        layers.append(layer)
    return adapter(name, shape, 2.0, layers, dtype)


def tokens(shape: Shape, rank: int) -> int:
    """Tokens of KV whose memory an adapter of all four matrices takes: 4 * rank with as many KV heads as heads."""
    return ceil(rank * shape.layers * Layout.of(shape, TARGETS).page / shape.kv_values)
