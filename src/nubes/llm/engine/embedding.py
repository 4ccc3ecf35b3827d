"""Sentence embeddings: a BERT encoder in NumPy, mean-pooled, as MiniLM and its like are."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nubes.kernel.errors import UsageError
from nubes.llm.errors import BrokenModel, ContextTooLong

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

BATCH_TOKENS = 8192  # computed together, padding included


def is_encoder(path: Path) -> bool:
    """Whether a folder holds a BERT encoder and not a decoder."""
    try:
        return "BertModel" in json.loads((path / "config.json").read_text()).get("architectures", ())
    except (OSError, ValueError):
        return False


class Encoder:
    """Implements `nubes.llm.live.Embedder`. Texts beyond the context are refused, not cut."""

    def __init__(self, name: str, path: Path) -> None:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        try:
            config = json.loads((path / "config.json").read_text())
            self._weights: dict[str, Floats] = {
                key: np.ascontiguousarray(value, np.float32) if value.dtype.kind == "f" else value
                for key, value in load_file(path / "model.safetensors").items()
            }
            self._tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
            self._layers, self._heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
            self.dimensions = int(config["hidden_size"])
            self.context = int(config["max_position_embeddings"])
            self._eps = float(config["layer_norm_eps"])
            self._weights[f"encoder.layer.{self._layers - 1}.output.dense.weight"]
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise BrokenModel(f"{path} holds no embedding model that can be read: {error}.", "Get it again.") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.name = name

    async def embed(self, texts: Sequence[str | list[int]]) -> tuple[list[list[float]], int]:
        """A unit vector for each text or token list, and how many tokens they had together."""
        tokens = [self.tokens(text) for text in texts]
        vectors = await asyncio.to_thread(self.encode, tokens)
        return vectors.tolist(), sum(map(len, tokens))

    def tokens(self, text: str | list[int]) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text).ids if isinstance(text, str) else text
        if not ids:
            raise UsageError("A text without tokens has no embedding.", "Give at least one.")
        if len(ids) > self.context:
            raise ContextTooLong(
                f"A text of {len(ids)} tokens exceeds the context of {self.context}.", "Embed it in pieces."
            )
        if max(ids) >= len(self._weights["embeddings.word_embeddings.weight"]) or min(ids) < 0:
            raise UsageError("A token is outside of the model's vocabulary.", "Send texts, or its own tokens.")
        return ids

    def encode(self, tokens: Sequence[Sequence[int]]) -> Floats:
        """[texts, dimensions]: short ones are computed together with short ones."""
        made = np.empty((len(tokens), self.dimensions), np.float32)
        order = sorted(range(len(tokens)), key=lambda at: len(tokens[at]))
        while order:
            longest = len(tokens[order[-1]])
            count = max(1, BATCH_TOKENS // longest)
            batch, order = order[-count:], order[:-count]
            ids = np.zeros((len(batch), longest), np.int64)
            mask = np.zeros((len(batch), longest), np.float32)
            for row, at in enumerate(batch):
                ids[row, : len(tokens[at])] = tokens[at]
                mask[row, : len(tokens[at])] = 1.0
            made[batch] = self._pooled(ids, mask)
        return made

    def _pooled(self, ids: NDArray[np.int64], mask: Floats) -> Floats:
        w = self._weights
        x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
        x = self._norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        away = (mask - 1.0)[:, None, None, :] * 1e9
        for layer in range(self._layers):
            x = self._layer(x, f"encoder.layer.{layer}.", away)
        mean = (x * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        return np.asarray(mean / np.linalg.norm(mean, axis=1, keepdims=True), np.float32)

    def _layer(self, x: Floats, at: str, away: Floats) -> Floats:
        n, length, hidden = x.shape
        size = hidden // self._heads

        def heads(part: str) -> Floats:
            return self._linear(x, f"{at}attention.self.{part}").reshape(n, length, -1, size).transpose(0, 2, 1, 3)

        scores = heads("query") @ heads("key").transpose(0, 1, 3, 2) / np.float32(size**0.5) + away
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        seen = (weights @ heads("value")).transpose(0, 2, 1, 3).reshape(n, length, hidden)
        x = self._norm(x + self._linear(seen, f"{at}attention.output.dense"), f"{at}attention.output.LayerNorm")
        inner = _gelu(self._linear(x, f"{at}intermediate.dense"))
        return self._norm(x + self._linear(inner, f"{at}output.dense"), f"{at}output.LayerNorm")

    def _linear(self, x: Floats, name: str) -> Floats:
        flat = x.reshape(-1, x.shape[-1]) @ self._weights[f"{name}.weight"].T  # one product, not one for each text
        flat += self._weights[f"{name}.bias"]
        return flat.reshape(*x.shape[:-1], -1)

    def _norm(self, x: Floats, name: str) -> Floats:
        x = x - x.mean(axis=-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + self._eps)
        return np.asarray(x * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"])


def _gelu(x: Any) -> Any:
    """x times the normal distribution's share below x. erf by Abramowitz and Stegun 7.1.26, right to 1.5e-7."""
    z = np.abs(x) * np.float32(2**-0.5)
    t = 1.0 / (1.0 + np.float32(0.3275911) * z)
    tail = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t
    erf = np.copysign(1.0 - tail * np.exp(-z * z), x)
    return (0.5 * x * (1.0 + erf)).astype(np.float32)
