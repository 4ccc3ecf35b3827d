"""A Llama-family decoder out of a Hugging Face folder: config.json and safetensors."""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import numpy as np

from nubes.kernel.errors import UsageError
from nubes.llm.checkpoint import rope
from nubes.llm.checkpoint.blocks import DTYPES, Blocks
from nubes.llm.checkpoint.extras import needed
from nubes.llm.errors import BrokenModel
from nubes.llm.spec import Shape

AGAIN = "Download the folder again."
FAMILIES = ("LlamaForCausalLM", "MistralForCausalLM")


class Config(msgspec.Struct, kw_only=True):
    """What config.json says, as far as it matters here. Older files have rope_theta and rope_scaling apart."""

    architectures: list[str] = []
    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int = 2048
    sliding_window: int | None = None
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    partial_rotary_factor: float = 1.0
    quantization_config: dict[str, Any] | None = None


def read_json(path: Path) -> Any:
    """Raises `BrokenModel` for a file that is not JSON, or not there."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise BrokenModel(f"{path} cannot be read: {error.strerror}.", AGAIN) from None
    except (ValueError, RecursionError) as error:
        raise BrokenModel(f"{path} is damaged: {error}.", AGAIN) from None


def shape_of(folder: Path) -> Shape:
    """Raises `UsageError` for models of other families, and for features that are not supported."""
    path = folder / "config.json"
    raw = read_json(path)
    named = raw.get("architectures") if isinstance(raw, dict) else None
    if not (isinstance(named, list) and named and named[0] in FAMILIES):
        what = ", ".join(map(str, named)) if isinstance(named, list) and named else "of no named architecture"
        raise UsageError(f"The model in {folder} is {what}.", f"Supported: {', '.join(FAMILIES)}.")
    try:
        config = msgspec.convert(raw, Config)
    except msgspec.ValidationError as error:
        raise BrokenModel(f"{path} is damaged: {error}.", AGAIN) from None
    _refuse(config, folder)
    rotation = config.rope_parameters or config.rope_scaling or {}
    heads = config.num_attention_heads
    head_dim = config.head_dim or config.hidden_size // max(1, heads)
    try:
        theta = float(rotation.get("rope_theta") or config.rope_theta or 10_000.0)
        kind = str(rotation.get("rope_type") or rotation.get("type") or "default")
        factors = rope.factors(kind, theta, head_dim, rotation)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise BrokenModel(f"{path} is damaged: its rope parameters make no sense ({error}).", AGAIN) from None
    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=heads,
        kv_heads=config.num_key_value_heads or heads,
        head_dim=head_dim,
        ffn=config.intermediate_size,
        vocab=config.vocab_size,
        # Within the window, attention that slides and attention that does not are the same.
        context=min(config.max_position_embeddings, config.sliding_window or config.max_position_embeddings),
        rope_theta=theta,
        rope_factors=factors,
        norm_eps=config.rms_norm_eps,
        tied=config.tie_word_embeddings,
    )


def _refuse(config: Config, folder: Path) -> None:
    unlike = {
        f"the activation {config.hidden_act}": config.hidden_act != "silu",
        "biases": config.attention_bias or config.mlp_bias,
        "a rope that turns only part of each head": config.partial_rotary_factor != 1.0,
        "weights quantised by another library": config.quantization_config is not None,
    }
    for what, there in unlike.items():
        if there:
            hint = "Take a Llama or Mistral model in fp32, fp16 or bf16, or a GGUF file."
            raise UsageError(f"The model in {folder} has {what}, which is not supported.", hint)


class FolderWeights:
    """The tensors of all safetensors files of a folder, mapped."""

    def __init__(self, folder: Path) -> None:
        self.bytes = 0
        self._tensors: dict[str, Blocks] = {}
        for path in _files(folder):
            self._open(path)
        self.shapes: Mapping[str, tuple[int, ...]] = {name: one.data.shape for name, one in self._tensors.items()}

    def raw(self, name: str) -> Blocks:
        return self._tensors[name]

    def _open(self, path: Path) -> None:
        with needed():
            from safetensors import SafetensorError, safe_open
        try:
            with safe_open(path, framework="np"):
                pass  # the header is sound, and the file as long as it says
            with path.open("rb") as file:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (SafetensorError, OSError, ValueError) as error:
            raise BrokenModel(f"{path} is damaged or cut short: {error}.", AGAIN) from None
        # Mapped here rather than by the library, whose numpy side copies, and has no bf16.
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        header.pop("__metadata__", None)
        self.bytes += len(data)
        for name, entry in header.items():
            if entry["dtype"] not in DTYPES:
                raise UsageError(f"{path} stores {name} as {entry['dtype']}.", "Supported: F32, F16, BF16.")
            if name in self._tensors or 0 in entry["shape"]:
                raise BrokenModel(f"{path} is damaged: {name} is empty, or there twice.", AGAIN)
            begin, end = entry["data_offsets"]
            dtype = DTYPES[entry["dtype"]]
            flat = np.frombuffer(data, dtype, (end - begin) // dtype.itemsize, start + begin)
            self._tensors[name] = Blocks(entry["dtype"], flat.reshape(entry["shape"]))


def _files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            names = set(read_json(index)["weight_map"].values())
            paths = [folder / Path(name).name for name in sorted(names)]
        except (KeyError, TypeError, AttributeError):
            raise BrokenModel(f"{index} is damaged: it has no weight_map.", AGAIN) from None
        missing = [path.name for path in paths if not path.exists()]
        if missing:
            raise BrokenModel(f"{folder} lacks {', '.join(missing)}.", AGAIN)
        return paths
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found
    _no_weights(folder, len(found))


def _no_weights(folder: Path, found: int) -> NoReturn:
    if found:
        raise BrokenModel(f"{folder} has {found} safetensors files and no model.safetensors.index.json.", AGAIN)
    other = any(folder.glob("*.bin"))
    hint = "Convert it: `save_pretrained` of transformers writes safetensors." if other else AGAIN
    raise BrokenModel(f"{folder} has no safetensors files.", hint)
