"""The runtime in PyTorch: on CUDA, and the reference that the compiled one is held against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nubes.llm.lora.adapter import TARGETS, Adapter, sizes
from nubes.llm.runtime import slots
from nubes.llm.runtime.rotary import angles
from nubes.llm.runtime.rows import Checkpoint, Ints, Rows


class TorchRuntime:
    """A decoder of which all but the attention of one sequence's rows is one batch. `x` and logits are tensors.

    KV is of the weights' type.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        format: Literal["fp32", "bf16"] = "fp32",
        blocks: int = 256,
        block_size: int = 16,
        device: str = "cpu",
    ) -> None:
        import torch

        self._torch = torch
        self.shape = s = checkpoint.shape
        self.blocks, self.block_size = blocks, block_size
        self.device = device
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[format]

        def get(name: str) -> Any:
            return torch.tensor(checkpoint.tensor(name), dtype=self.dtype, device=device)

        self._embedding = get("model.embed_tokens.weight")
        self._head = self._embedding if s.tied else get("lm_head.weight")
        self._norm = get("model.norm.weight")
        self._layers = [{part: get(f"model.layers.{i}.{part}.weight") for part in _PARTS} for i in range(s.layers)]
        self._rope = torch.tensor(angles(s), device=device)
        self.kv = torch.zeros(
            (blocks, s.layers, 2, s.kv_heads, block_size * s.head_dim), dtype=self.dtype, device=device
        )
        floats = slots.Floats(s, self.kv, block_size)
        self.slots: slots.Slots = floats
        self._keys, self._values = floats.keys, floats.values
        self.block_bytes = self.kv[0].nbytes

    def embed(self, tokens: Ints) -> Any:
        return self._embedding[self._index(tokens)].float()

    def forward(self, x: Any, rows: Rows, first: int = 0, last: int | None = None, keep: Any = None) -> None:
        rows.check(self.shape.context, self.blocks, self.block_size)
        plan = self._plan(rows)
        for i in range(first, self.shape.layers if last is None else last):
            if keep is not None:
                keep[i] = x
            layer = self._layers[i]
            q = self._project(i, x, rows, plan)
            attended = self._attend(i, q, plan)
            x += self._product(i, "o_proj", attended, rows)
            h = self._rms(x, layer["post_attention_layernorm"])
            gate = self._torch.nn.functional.silu(h @ layer["mlp.gate_proj"].T)
            x += (gate * (h @ layer["mlp.up_proj"].T)) @ layer["mlp.down_proj"].T

    def logits(self, x: Any, rows: Ints | None = None) -> Any:
        chosen = x if rows is None else x[self._index(rows)]
        return (self._rms(chosen, self._norm) @ self._head.T).float()

    def step(self, tokens: Ints, rows: Rows, outputs: Ints, keep: Any = None) -> Any:
        x = self.embed(tokens)
        self.forward(x, rows, keep=keep)
        return self.logits(x, outputs)

    def project(self, layer: int, x: Any, rows: Rows) -> None:
        rows.check(self.shape.context, self.blocks, self.block_size)
        self._project(layer, x, rows, self._plan(rows))

    def place(self, adapter: Adapter, nth: int, block: int) -> None:
        piece = adapter.piece(nth, self.slots.pages.shape[1])
        self.slots.pages[block][: piece.size] = self._torch.as_tensor(piece).to(self.dtype)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        for source, target in pairs:
            self.kv[target] = self.kv[source]

    def close(self) -> None:
        """Nothing is held that the interpreter would not free."""

    def _index(self, array: NDArray[Any]) -> Any:
        return self._torch.as_tensor(array, device=self.device).long()

    def _rms(self, x: Any, weight: Any) -> Any:
        x = x.float()
        return (x * self._torch.rsqrt((x * x).mean(-1, keepdim=True) + self.shape.norm_eps)).to(self.dtype) * weight

    def _plan(self, rows: Rows) -> dict[str, Any]:
        """What all layers share: where keys go, the angles, and for each sequence its rows, blocks and mask."""
        torch, size = self._torch, self.block_size
        sequences = []
        for s in np.unique(rows.sequence):
            which = np.flatnonzero(rows.sequence == s)
            table = rows.tables[rows.table_start[s] : rows.table_start[s + 1]]
            slots = np.arange(len(table) * size)
            mask = slots < rows.visible[which, None]
            if rows.extra is not None:
                bit = np.clip(slots - rows.visible[which, None], -1, 64)
                chosen = rows.extra[which, None] >> np.clip(bit, 0, 63).astype(np.uint64) & np.uint64(1)
                mask |= (bit >= 0) & (bit < 64) & (chosen > 0)
            used = int(np.flatnonzero(mask.any(axis=0)).max(initial=-1)) + 1
            sequences.append(
                (self._index(which), self._index(table), used, torch.as_tensor(mask[:, :used], device=self.device))
            )
        blocks = rows.tables[rows.table_start[rows.sequence] + rows.slots // size]
        cosine, sine = self._rope[self._index(rows.positions)].unsqueeze(1).chunk(2, -1)
        return {
            "blocks": self._index(blocks),
            "offsets": self._index(rows.slots % size),
            "angles": (cosine, sine),
            "sequences": sequences,
        }

    def _project(self, i: int, x: Any, rows: Rows, plan: dict[str, Any]) -> Any:
        """Write the layer's keys and values; return its queries [rows, heads, head_dim]."""
        layer, dim = self._layers[i], self.shape.head_dim
        h = self._rms(x, layer["input_layernorm"])
        q, k, v = (self._product(i, name, h, rows).unflatten(-1, (-1, dim)) for name in ("q_proj", "k_proj", "v_proj"))
        self._keys[plan["blocks"], i, :, :, plan["offsets"]] = self._turn(k, plan)
        self._values[plan["blocks"], i, :, plan["offsets"]] = v
        return self._turn(q, plan)

    def _product(self, i: int, target: str, x: Any, rows: Rows) -> Any:
        """`x` times a matrix of the attention half, and what the rows' adapters add."""
        y = x @ self._layers[i][f"self_attn.{target}"].T
        if rows.lora is None:
            return y
        at, (inputs, outputs) = TARGETS.index(target), sizes(self.shape)[target]
        for first, count, placed in zip(rows.lora.first, rows.lora.rows, rows.lora.placed, strict=True):
            a, b, page = placed.layout.a[at], placed.layout.b[at], placed.layout.page
            if a < 0:
                continue
            per = self.kv[0].numel() // page
            pages = self.kv[self._index(placed.blocks)].flatten(1)[:, : per * page].reshape(-1, page)
            mine = pages[i * placed.rank : (i + 1) * placed.rank]
            inner = x[first : first + count] @ mine[:, a : a + inputs].T
            y[first : first + count] += placed.scale * (inner @ mine[:, b : b + outputs])
        return y

    def _turn(self, x: Any, plan: dict[str, Any]) -> Any:
        cosine, sine = plan["angles"]
        a, b = x.float().chunk(2, -1)
        return self._torch.cat((a * cosine - b * sine, b * cosine + a * sine), -1).to(self.dtype)

    def _attend(self, i: int, q: Any, plan: dict[str, Any]) -> Any:
        torch, s = self._torch, self.shape
        out = torch.zeros_like(q)
        for which, table, used, mask in plan["sequences"]:
            k = self._keys[table, i].permute(1, 0, 3, 2).flatten(1, 2)[:, :used]  # [kv_heads, slots, head_dim]
            v = self._values[table, i].transpose(0, 1).flatten(1, 2)[:, :used]
            mine = q[which].transpose(0, 1).unflatten(0, (s.kv_heads, -1))  # [kv_heads, group, rows, head_dim]
            scores = (mine @ k.unsqueeze(1).mT).float() * s.head_dim**-0.5
            weights = scores.masked_fill(~mask, -1e30).softmax(-1) * mask  # who sees nothing gets nothing
            out[which] = (weights.to(self.dtype) @ v.unsqueeze(1)).flatten(0, 1).transpose(0, 1)
        return out.flatten(1)


_PARTS = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
