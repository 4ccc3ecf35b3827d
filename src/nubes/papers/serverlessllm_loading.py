"""ServerlessLLM, live: cold starts of checkpoints in the fast format, and a move by tokens between two engines."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

from nubes.papers.claims import Claim, Result
from nubes.papers.fleets import OnDemand, ask, missing, opened, prompts
from nubes.papers.generating import MODEL

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nubes.papers.context import Context

    Tensors = dict[str, NDArray[Any]]

CONTEXT, TOKENS, GAP = 1024, 300, 20
BIG = 2 << 30


def loading(ctx: Context, raw: Claim, torch_claim: Claim, safe: Claim, warm: Claim) -> Iterator[Result]:
    """Each way of loading in turn, several rounds, from a disk whose pages the system has forgotten."""
    claims = (raw, torch_claim, safe, warm)
    try:
        import safetensors.numpy
        import torch
    except ImportError as error:
        yield from ctx.all_unmeasured(claims, f"{error.name} is not installed", "live")
        return
    found: dict[Claim, list[float]] = {claim: [] for claim in claims}
    sizes = ""
    for seed in ctx.each("checkpoints loaded cold"):
        worst: dict[Claim, float] = {}
        for name, tensors in _checkpoints(ctx, seed):
            folder = ctx.folder / f"{name}-{seed}"
            total = _save(tensors, folder)
            sizes += f"{name} {total / 1e6:,.0f} MB; " if not seed else ""
            del tensors
            took = _rounds(folder, ctx.pick(3, 5), torch.load, safetensors.numpy.load_file)
            ratios = {
                raw: took["raw"] / took["ours"], torch_claim: took["torch"] / took["ours"],
                safe: took["safetensors"] / took["ours"], warm: took["ours"] / took["warm"],
            }  # fmt: skip
            worst = {claim: min(worst.get(claim, ratio), ratio) for claim, ratio in ratios.items()}
            for path in folder.iterdir():
                path.unlink()
        for claim in claims:
            found[claim].append(worst[claim])
    about = f"{sizes}the lower of both; page cache dropped before each load, every page touched after it."
    for claim in claims:
        yield ctx.result(claim, found[claim], about, "live")


def _checkpoints(ctx: Context, seed: int) -> Iterator[tuple[str, Tensors]]:
    """The small model as fp32 where it is installed, and one that is made up."""
    import numpy as np

    from nubes.kernel.errors import NotFound
    from nubes.llm.checkpoint import load
    from nubes.workloads.draws import generator

    try:
        model = load(MODEL)
        yield "smollm2-135m", {name: model.tensor(name) for name in model.names}
    except NotFound:
        ctx.say(f"{MODEL} is not installed: only what is made up is loaded")
    draw = generator(seed, "serverlessllm", "checkpoint")
    size = ctx.pick(BIG // 2, BIG)
    layers = size // (4096 * 4096 * 4)
    yield "made up", {f"layer.{n}": draw.random((4096, 4096), np.float32) for n in range(layers)}


def _save(tensors: Tensors, folder: Path) -> int:
    import safetensors.numpy
    import torch

    from nubes.llm.checkpoint.fast import save

    total = save(tensors, folder)
    safetensors.numpy.save_file({name: tensor.copy() for name, tensor in tensors.items()}, folder / "safetensors")
    torch.save({name: torch.from_numpy(tensor.copy()) for name, tensor in tensors.items()}, folder / "torch")
    os.sync()
    return total


def _rounds(
    folder: Path, rounds: int, torch_load: Callable[..., Any], safe_load: Callable[..., Any]
) -> dict[str, float]:
    """Median seconds of each way. `raw` is a plain loop of direct reads of the same file, nothing done with it."""
    from nubes.llm.checkpoint.pool import Loaded, Pool

    pool = Pool(4 << 30)

    def ours() -> Any:
        pool.drop(folder)
        return pool.load(folder)

    ways: dict[str, Callable[[], Any]] = {
        "raw": lambda: _plain(folder / "tensor.data_0"),
        "ours": ours,
        "warm": lambda: pool.load(folder),  # it is right behind `ours`
        "torch": lambda: torch_load(folder / "torch", weights_only=True),
        "safetensors": lambda: safe_load(folder / "safetensors"),
    }
    took: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, load in ways.items():
            for path in folder.iterdir():
                _forget(path)
            begun = perf_counter()
            loaded = load()
            _touch(loaded)
            took[way].append(perf_counter() - begun)
            if isinstance(loaded, Loaded):
                loaded.close()
    return {way: median(times) for way, times in took.items()}


def _plain(path: Path) -> bytes:
    """Reads a file from its beginning to its end, past the page cache, 16 MiB at a time."""
    import mmap

    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, 16 << 20) as buffer, memoryview(buffer) as view:
            while os.readv(fd, [view]):
                pass
    finally:
        os.close(fd)
    return b""


def _forget(path: Path) -> None:
    """The system drops the file's pages."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def _touch(loaded: Any) -> None:
    """Reads one number of every page."""
    from nubes.llm.checkpoint.pool import Loaded

    tensors = loaded.tensors if isinstance(loaded, Loaded) else loaded
    if isinstance(tensors, dict):
        for tensor in tensors.values():
            tensor.reshape(-1)[::1024].sum()


def by_tokens(ctx: Context, same: Claim, bytes_claim: Claim, stop: Claim) -> Iterator[Result]:
    """A running request moves by its tokens, which the target computes while the source goes on."""
    why = missing()
    if why:
        yield from ctx.all_unmeasured((same, bytes_claim, stop), why, "live")
        return
    alike, shares, left = [], [], []
    for seed in ctx.each("requests that move by tokens"):
        equal, share, most = asyncio.run(_moves(ctx, seed))
        alike.append(equal)
        shares.append(share)
        left.append(most)
    about = f"smollm2-135m in int8 on two engine processes, contexts of {CONTEXT} tokens, delta {GAP}."
    yield ctx.result(same, alike, about, "live")
    yield ctx.result(bytes_claim, shares, about, "live")
    yield ctx.result(stop, left, about, "live")


async def _moves(ctx: Context, seed: int) -> tuple[float, float, float]:
    """The share of answers that stay the same, bytes sent by KV bytes, the most tokens to compute at the stop."""
    from nubes.llm.checkpoint import load

    shape = load(MODEL).shape
    policy = OnDemand()
    count = ctx.pick(3, 8)
    equal, total, sent, kept = 0, 0, 0, 0
    left: list[int] = []
    async with opened(roles=("both", "both"), blocks=600, routing="round-robin", migration=policy) as fleet:
        for prompt in prompts(ctx, seed, count, CONTEXT):
            policy.ask("tokens", CONTEXT + 4)
            fleet.sent_bytes, fleet.left = 0, []
            before = fleet.fleet.moved
            moved, _ = await ask(fleet, prompt, TOKENS)
            policy.wanted.clear()
            alone, _ = await ask(fleet, prompt, TOKENS)
            if fleet.fleet.moved == before:
                continue  # it had ended before, or the gap never closed
            total += 1
            equal += moved == alone
            sent += fleet.sent_bytes
            kept += CONTEXT * shape.kv_values * 2
            left += fleet.left
    if not total:
        return 0.0, inf, inf  # nothing has moved
    return equal / total, sent / kept, float(max(left))
