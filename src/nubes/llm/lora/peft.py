"""Adapters as PEFT saves them: a folder of adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import DTypeLike

from nubes.kernel.errors import NotFound, UsageError
from nubes.llm.errors import BrokenModel
from nubes.llm.lora.adapter import TARGETS, Adapter, Pair, adapter, sizes
from nubes.llm.spec import Shape

_NAME = re.compile(r"layers\.(\d+)\.self_attn\.(\w+)\.lora_([AB])(?:\.\w+)?\.weight$")


class _Config(msgspec.Struct):
    r: int
    lora_alpha: float = 8
    peft_type: str = "LORA"
    bias: str = "none"
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None


def load_adapter(name: str, path: str | Path, shape: Shape, dtype: DTypeLike = np.float32) -> Adapter:
    """The adapter in a folder. Raises `NotFound`, `UsageError` for kinds that are not served, `BrokenModel`."""
    folder = Path(path).expanduser()
    if not (folder / "adapter_config.json").is_file():
        raise NotFound(f"{path} holds no adapter.", "Name a folder with adapter_config.json, as PEFT saves it.")
    try:
        config = msgspec.json.decode((folder / "adapter_config.json").read_bytes(), type=_Config)
    except msgspec.DecodeError as error:
        raise BrokenModel(f"{folder}/adapter_config.json: {error}.", "Save the adapter again.") from None
    _refuse(name, config)
    pairs: dict[int, dict[str, dict[str, Any]]] = {}
    for key, tensor in _tensors(folder):
        match = _NAME.search(key)
        if match is None or match[2] not in TARGETS:
            raise UsageError(f"Adapter {name!r} changes {key}.", f"Served are adapters of {', '.join(TARGETS)}.")
        pairs.setdefault(int(match[1]), {}).setdefault(match[2], {})[match[3]] = tensor
    if not pairs:
        raise BrokenModel(f"Adapter {name!r} holds no matrices.", "Save it again.")
    targets = {target for layer in pairs.values() for target in layer}
    if max(pairs) >= shape.layers:
        raise UsageError(
            f"Adapter {name!r} has a layer {max(pairs)}, the model {shape.layers}.", "It is for another model."
        )
    layers = [
        {target: _pair(name, shape, config, i, target, pairs.get(i, {}).get(target)) for target in sorted(targets)}
        for i in range(shape.layers)
    ]
    scale = config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
    return adapter(name, shape, scale, layers, dtype)


def _refuse(name: str, config: _Config) -> None:
    strange = {
        f"peft_type={config.peft_type}": config.peft_type != "LORA",
        f"bias={config.bias}": config.bias != "none",
        "use_dora": config.use_dora,
        "fan_in_fan_out": config.fan_in_fan_out,
        "rank_pattern": bool(config.rank_pattern),
        "alpha_pattern": bool(config.alpha_pattern),
        "modules_to_save": bool(config.modules_to_save),
    }
    for what, there in strange.items():
        if there:
            raise UsageError(f"Adapter {name!r} has {what}.", "Served is plain LoRA with one rank and one alpha.")


def _pair(name: str, shape: Shape, config: _Config, layer: int, target: str, found: dict[str, Any] | None) -> Pair:
    if found is None and config.layers_to_transform is not None:
        inputs, outputs = sizes(shape)[target]
        return np.zeros((config.r, inputs), np.float32), np.zeros((outputs, config.r), np.float32)
    if found is None or len(found) != 2 or len(found["A"]) != config.r:
        raise BrokenModel(f"Adapter {name!r} lacks {target} of layer {layer} in rank {config.r}.", "Save it again.")
    return found["A"], found["B"]


def _tensors(folder: Path) -> Iterable[tuple[str, Any]]:
    """Every tensor as float32; bfloat16 is widened by hand, as NumPy has no such type."""
    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        raise NotFound(f"{folder} has no adapter_model.safetensors.", "Save it with safe_serialization=True.")
    try:
        import safetensors
    except ImportError:
        raise UsageError("Adapters need the package safetensors.", "Run `pip install nubes[llm]`.") from None
    try:
        found: list[tuple[str, Any]] = safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
        for key, info in found:
            kind, shape = info["dtype"], info["shape"]
            if kind == "BF16":
                wide = np.frombuffer(info["data"], np.uint16).astype(np.uint32) << 16
                yield key, wide.view(np.float32).reshape(shape)
            elif kind in ("F16", "F32"):
                yield (
                    key,
                    np.frombuffer(info["data"], np.float16 if kind == "F16" else np.float32)
                    .reshape(shape)
                    .astype(np.float32),
                )
            else:
                raise UsageError(f"{key} is of type {kind}.", "Save it as float32, float16 or bfloat16.")
    except safetensors.SafetensorError as error:
        raise BrokenModel(f"{path} is damaged: {error}.", "Save the adapter again.") from None
