"""From a model's name to an engine that serves it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from nubes.kernel.errors import UsageError
from nubes.kernel.units import size_bytes
from nubes.llm.declaring import ENGINE_SEAMS
from nubes.llm.runtime.slots import block_bytes

if TYPE_CHECKING:
    from nubes.llm.checkpoint import Checkpoint
    from nubes.llm.engine.local import LocalEngine
    from nubes.llm.lora.store import Store
    from nubes.llm.runtime.rows import Runtime
    from nubes.llm.runtime.weights import Format as Packed
    from nubes.llm.spec import LLMSpec

log = logging.getLogger("nubes.llm")

BLOCK = 16
FORMATS = ("fp32", "bf16", "int8", "int4")


def open_engine(
    model: str,
    *,
    format: str = "int8",
    device: str = "auto",
    threads: int | None = None,
    kv_memory: str = "1GiB",
    adapters: Mapping[str, str] = {},
    **options: Any,
) -> LocalEngine:
    """An engine for a model that `nubes.llm.checkpoint.find` knows. `options` are those of `LocalEngine`.

    `adapters`: folders of LoRA adapters by name.
    `device`: `cuda` if there is one with `auto`, else `cpu`. `format`: of the weights. Raises `NotFound`, `UsageError`,
    `BrokenModel`.
    """
    from nubes.llm.checkpoint import load
    from nubes.llm.engine.local import LocalEngine

    checkpoint = load(model)
    runtime = open_runtime(checkpoint, format, device, threads, size_bytes(kv_memory, "kv_memory"))
    engine = LocalEngine(checkpoint.name, runtime, checkpoint.tokens, **options)
    for name, path in adapters.items():
        engine.load_adapter(name, path)
    return engine


def open_runtime(
    checkpoint: Checkpoint, format: str = "int8", device: str = "auto", threads: int | None = None,
    kv_bytes: int = 1 << 30, block_size: int = BLOCK,
) -> Runtime:  # fmt: skip
    """What runs a checkpoint on this machine: the compiled runtime on a CPU where it can be built, else PyTorch."""
    if format not in FORMATS:
        raise UsageError(f"{format!r} is no format of weights.", f"There are: {', '.join(FORMATS)}.")
    if device == "auto":
        device = "cuda" if cuda() else "cpu"
    shape = checkpoint.shape
    if device == "cpu" and format != "bf16":
        from nubes.llm.runtime.build import NoCompiler
        from nubes.llm.runtime.native import NativeRuntime

        blocks = max(1, kv_bytes // block_bytes(shape, block_size, 4 if format == "fp32" else 1))
        try:
            return NativeRuntime(
                checkpoint, cast("Packed", format), blocks, block_size, threads or len(os.sched_getaffinity(0))
            )
        except NoCompiler as error:
            log.warning("%s Until then the model runs through PyTorch, in fp32 and slower.", error)
            format = "fp32"
    from nubes.llm.runtime.torch import TorchRuntime

    wide: Literal["fp32", "bf16"] = "fp32" if format == "fp32" else "bf16"  # what PyTorch runs in place of few bits
    blocks = max(1, kv_bytes // block_bytes(shape, BLOCK, 4 if wide == "fp32" else 2))
    return TorchRuntime(checkpoint, wide, blocks, BLOCK, device)


class Loaded(NamedTuple):
    """A model in memory, with its adapters."""

    checkpoint: Checkpoint
    runtime: Runtime
    store: Store


def load_model(spec: LLMSpec) -> Loaded:
    """What a declared LLM is served from. Raises `NotFound`, `UsageError`, `BrokenModel`."""
    from nubes.llm.checkpoint import load

    checkpoint = load(spec.model)
    threads = spec.threads or max(1, len(os.sched_getaffinity(0)) // spec.replicas)
    runtime = open_runtime(checkpoint, spec.format, spec.device, threads, spec.kv_memory_bytes)
    return equipped(checkpoint, runtime, spec.adapters)


def equipped(checkpoint: Checkpoint, runtime: Runtime, adapters: Mapping[str, str]) -> Loaded:
    """With adapters from folders, by name. Raises `UsageError`, `NotFound`, `BrokenModel`."""
    from nubes.llm.lora.store import Store

    store = Store(runtime)
    for name, folder in adapters.items():
        store.load(name, folder)
    return Loaded(checkpoint, runtime, store)


def serve(spec: LLMSpec, loaded: Loaded) -> LocalEngine:
    """One engine, in this process."""
    from nubes.llm.engine.local import LocalEngine

    words: dict[str, Any] = {seam: getattr(spec, seam) or None for seam in ENGINE_SEAMS}
    return LocalEngine(
        spec.label, loaded.runtime, loaded.checkpoint.tokens, max_waiting=spec.max_waiting, store=loaded.store, **words
    )


def cuda() -> bool:
    """Whether there is a GPU that PyTorch can use. Does not load PyTorch where there is no driver."""
    if not (os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/dxg")):
        return False
    import torch

    return bool(torch.cuda.is_available())
