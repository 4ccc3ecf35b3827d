"""Plain facts about devices and models: what fits where, and what an hour costs."""

from __future__ import annotations

import re

import msgspec

from nubes.kernel.errors import UsageError

HALF = 2  # bytes of a 16-bit number
GIB = 2**30


class Gpu(msgspec.Struct, frozen=True):
    """A device from its data sheet. The price is an assumption: on-demand list prices of 2024, rounded."""

    name: str
    memory_bytes: int
    bandwidth: float  # of its memory, bytes/s
    flops: float  # dense, 16-bit, per second
    link: float  # to its neighbours, bytes/s each way
    host_link: float  # PCIe, bytes/s each way
    dollars_per_hour: float
    price_source: str


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100-40", 40 * GIB, 1_555e9, 312e12, 300e9, 25e9, 3.67, "Google Cloud a2-highgpu-1g, 2024"),
        Gpu("a100-80", 80 * GIB, 2_039e9, 312e12, 300e9, 25e9, 5.07, "Google Cloud a2-ultragpu-1g, 2024"),
        Gpu("h100", 80 * GIB, 3_350e9, 989e12, 450e9, 50e9, 11.06, "Google Cloud a3-highgpu-8g / 8, 2024"),
        Gpu("a40", 48 * GIB, 696e9, 149.7e12, 56e9, 25e9, 1.28, "CoreWeave A40, 2024"),
        Gpu("a10", 24 * GIB, 600e9, 125e12, 25e9, 25e9, 1.01, "AWS g5.xlarge, 2024"),
    )
}


class Llm(msgspec.Struct, frozen=True):
    """The sizes of a published decoder in 16-bit weights."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    gated: bool = True  # three matrices in the feed-forward part, not two
    tied: bool = False  # whether the output layer is the embedding

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def layer_parameters(self) -> int:
        """Of a layer's matrices."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return attention + (3 if self.gated else 2) * self.hidden * self.ffn

    @property
    def parameters(self) -> int:
        return self.layers * self.layer_parameters + self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def weight_bytes(self) -> int:
        return HALF * self.parameters

    @property
    def kv_bytes(self) -> int:
        """Of one token, over all layers."""
        return HALF * 2 * self.layers * self.kv_heads * self.head_dim


LLMS = {
    llm.name: llm
    for llm in (
        Llm("llama-2-7b", 32, 4096, 32, 32, 11008, 32000),
        Llm("llama-2-13b", 40, 5120, 40, 40, 13824, 32000),
        Llm("llama-2-70b", 80, 8192, 64, 8, 28672, 32000),
        Llm("llama-3-8b", 32, 4096, 32, 8, 14336, 128256),
        Llm("opt-13b", 40, 5120, 40, 40, 20480, 50272, gated=False, tied=True),
        Llm("opt-66b", 64, 9216, 72, 72, 36864, 50272, gated=False, tied=True),
        Llm("bloom-176b", 70, 14336, 112, 112, 57344, 250880, gated=False, tied=True),
    )
}


def gpu_facts(name: str) -> Gpu:
    """By name; `a100` is the one with 80 GB, and a power cap (`h100-pcap`) changes no fact here."""
    known = GPUS.get({"a100": "a100-80"}.get(name, name.removesuffix("-pcap")))
    if known is None:
        raise UsageError(f"There is no GPU {name!r}.", f"There are: {', '.join(GPUS)}.")
    return known


def llm_facts(name: str) -> Llm:
    """By name; `llama2-70b` is `llama-2-70b`."""
    known = LLMS.get(re.sub(r"^llama(?=\d)", "llama-", name))
    if known is None:
        raise UsageError(f"There is no LLM {name!r}.", f"There are: {', '.join(LLMS)}.")
    return known


def kv_tokens(llm: Llm, gpu: Gpu, tp: int = 1, pp: int = 1, utilisation: float = 0.9) -> int:
    """Tokens of KV that fit in `utilisation` of the memory of tp x pp devices, beside the weights.

    With more devices than KV heads, heads are held several times. Raises `UsageError` if the weights do not fit.
    """
    room = gpu.memory_bytes * utilisation * tp * pp - llm.weight_bytes
    if room <= 0:
        raise UsageError(
            f"{llm.name} ({llm.weight_bytes / 1e9:.0f} GB) does not fit {tp * pp} x {gpu.name}.",
            f"It takes at least {-(-llm.weight_bytes // int(gpu.memory_bytes * utilisation))} of them: raise tp or pp.",
        )
    held = tp * -(-llm.kv_heads // tp) / llm.kv_heads
    return int(room / (llm.kv_bytes * held))
