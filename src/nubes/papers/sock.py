"""SOCK: lean containers, and a tree of zygotes that imports each package once and never too much."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean
from types import ModuleType
from typing import Any

import msgspec
import numpy as np

from nubes.functions.policies.sock import PAPER
from nubes.functions.spec import Code
from nubes.papers import Claim, Context, Result, at_least, at_most, below, reproduction
from nubes.papers.live import cloud, cloud_bytes, module, settle, timed
from nubes.papers.simulated import azure, words

PACKAGES = ("numpy", "scipy.optimize", "pandas", "PIL.Image", "requests", "statsmodels.api", "rich.console", "httpx")
SIZE = (1.0, 256 << 20)  # of a container: CPUs, bytes
NO_ZYGOTE, EMPTY, FLAT = (
    "a fresh process for each start",
    "one zygote with a bare interpreter",
    "one zygote per function",
)

LEAN = Claim(
    "Lean containers are created and destroyed far faster.",
    "containers a second, lean / overlay file system, mount and network namespace and control group made per call",
    "overlayfs + mount namespace + network namespace + new control group",
    at_least(10.0),
    "18 (against Docker)",
)
START = Claim("The tree cuts starts.", "mean start time, tree / no zygote", NO_ZYGOTE, at_most(1 / 3), "about 0.33")
SHARED = Claim("More than a bare interpreter does.", "mean start time, tree / bare zygote", EMPTY, at_most(0.7))
MEMORY = Claim("At less memory than a zygote per function.", "memory of all zygotes, tree / flat", FLAT, at_most(0.6))
SEEN = Claim(
    "A function never sees a module that it did not ask for.",
    "functions with a package in sys.modules that a fresh start of theirs does not have",
    NO_ZYGOTE,
    at_most(0.0),
    "0",
)
EVICTION = Claim(
    "When memory is short, evicting by benefit to cost beats LRU.",
    "total start time, sock / sock(evict=lru), with room for half of the tree",
    "sock(evict=lru)",
    below(1.0),
)


@reproduction(
    PAPER,
    claims=(LEAN, START, SHARED, MEMORY, SEEN, EVICTION),
    area="functions",
    seam="cold-start",
    mode="both",
)
def run(ctx: Context) -> Iterator[Result]:
    """Containers, then functions with package sets live, then eviction simulated."""
    from nubes.drivers.local.containers import available

    why = available()
    if why:
        yield ctx.unmeasured(LEAN, why, "live")
    else:
        rounds = ctx.pick(30, 300)
        rates = [containers(ctx, seed, rounds) for seed in ctx.each("containers")]
        yield ctx.result(LEAN, rates, f"{rounds} containers one after the other, a forked process in each", "live")
    packages = [name for name in PACKAGES if importlib.util.find_spec(name.partition(".")[0])]
    count = ctx.pick(8, 40)
    found = [trees(ctx, seed, count, packages) for seed in ctx.each("functions with package sets")]
    about = f"{count} functions with 1 to 3 of {', '.join(packages)}; second start of each, all zygotes grown"
    for claim, values in zip((START, SHARED, MEMORY, SEEN), zip(*found, strict=True), strict=True):
        yield ctx.result(claim, values, about, "live")
    costs = [cost(name) for name in packages]
    minutes = ctx.pick(10.0, 120.0)
    ratios = [eviction(ctx, seed, packages, costs, minutes) for seed in ctx.each("eviction")]
    about = (
        f"{words(azure(ctx, 100)(0))} Its first {minutes:g} minutes; every call starts an instance, functions import "
    )
    yield ctx.result(EVICTION, ratios, about + "1 to 3 packages at the times and sizes measured here.", "simulated")


# -- containers ----------------------------------------------------------------------------------------------------


def containers(ctx: Context, seed: int, rounds: int) -> float:
    """Lean containers a second over heavy ones; in a process whose mounts go away with it."""
    folder = ctx.folder / f"containers-{seed}"
    folder.mkdir()
    with ProcessPoolExecutor(1) as pool:
        return pool.submit(_containers, folder, rounds).result()


def _containers(folder: Path, rounds: int) -> float:
    from nubes.drivers.local.containers import Lean, own_mounts
    from nubes.drivers.local.limits import Limits

    own_mounts()
    base = folder / "base"
    for name in ("scratch", "usr", "etc"):
        (base / name).mkdir(parents=True)
    limits = Limits(f"nubes-containers-{os.getpid()}")
    lean = Lean(base, folder, limits, *SIZE)
    try:
        _lean(lean, "first")
        begun = time.perf_counter()
        for n in range(rounds):
            _lean(lean, f"lean{n}")
        between = time.perf_counter()
        for n in range(rounds):
            _heavy(base, folder, limits, n)
        ended = time.perf_counter()
    finally:
        limits.close()
    return (ended - between) / (between - begun)


def _lean(lean: Any, name: str) -> None:
    root, group = lean.create(name)
    pid = os.fork()
    if pid == 0:
        lean.enter(root, group)
        os._exit(0)
    os.waitpid(pid, 0)
    lean.destroy(root, group)


def _heavy(base: Path, folder: Path, limits: Any, n: int) -> None:
    """What a general-purpose container engine sets up for each container, and takes apart."""
    from nubes.drivers.local import containers as c

    places = [folder / f"heavy{n}.{name}" for name in ("upper", "work", "root")]
    for place in places:
        place.mkdir()
    upper, work, root = places
    group = limits.take(*SIZE)
    pid = os.fork()
    if pid == 0:
        for path, content in limits.plan(group, *SIZE):
            Path(path).write_text(content)
        c.unshare(c.CLONE_NEWNS | c.CLONE_NEWNET)
        c.mount("none", Path("/"), "", c.MS_REC | c.MS_PRIVATE)
        c.mount("overlay", root, "overlay", 0, f"lowerdir={base},upperdir={upper},workdir={work}")
        c.mount("proc", root / "etc", "proc")
        os.chroot(root)
        os._exit(0)
    if os.waitpid(pid, 0)[1]:
        raise OSError("The baseline's container could not be made.")
    limits.retire(group)
    root.rmdir()


# -- trees ---------------------------------------------------------------------------------------------------------


def package_sets(seed: int, count: int, packages: Sequence[str]) -> list[tuple[str, ...]]:
    """1 to 3 packages for each function; those first named are asked for most."""
    from nubes.workloads.draws import generator

    draw = generator(seed, "sock packages")
    weights = 1.0 / np.arange(1, len(packages) + 1)
    sets = []
    for _ in range(count):
        size = int(draw.integers(1, 4))
        sets.append(tuple(sorted(draw.choice(packages, min(size, len(packages)), False, weights / weights.sum()))))
    return sets


CODE = """
import sys
{imports}
import nubes
app = nubes.App("set{n}")

@app.function(cpu=0.01)
def seen():
    return [name for name in {packages} if name in sys.modules]
"""


def trees(ctx: Context, seed: int, count: int, packages: Sequence[str]) -> tuple[float, float, float, float]:
    """(start over no zygote, start over bare zygote, memory over flat zygotes, functions that saw too much)."""
    times, memory, seen = {}, {}, {}
    for policy in ("fresh", "zygote", "flat-zygote", "sock"):
        made = []
        for n, wanted in enumerate(package_sets(seed, count, packages)):
            imports = "\n".join(f"import {name}" for name in wanted)
            text = CODE.format(imports=imports, n=n, packages=repr(list(packages)))
            made.append(module(ctx.folder / "code", f"nubes_set_{seed}_{n}", text))
        with cloud(ctx.folder / f"{policy}-{seed}", cold_start=policy, keep_alive="sand") as client:
            for one in made:
                one.app.deploy()
            seen[policy] = [_first(one) for one in made]
            grown(client)
            memory[policy] = cloud_bytes(client)
            times[policy] = mean(timed(one.seen.remote) for one in made)
    too_much = sum(bool(set(ours) - set(theirs)) for ours, theirs in zip(seen["sock"], seen["fresh"], strict=True))
    return (
        times["sock"] / times["fresh"],
        times["sock"] / times["zygote"],
        memory["sock"] / max(1, memory["flat-zygote"]),
        float(too_much),
    )


def _first(one: ModuleType) -> list[str]:
    names: list[str] = one.seen.remote()
    return names


def grown(client: Any) -> None:
    """Waits until no zygote has been growing for half a second."""
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        status = settle(client, lambda status: all(one["ready"] for one in status["parents"]))
        if not all(one["ready"] for one in status["parents"]):
            return
        time.sleep(0.05)


# -- eviction ------------------------------------------------------------------------------------------------------

COST = """
import sys, time
def held():
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) * 1024 for line in file if line.startswith("Private_"))
before, begun = held(), time.perf_counter()
__import__(sys.argv[1])
print(time.perf_counter() - begun, held() - before)
"""


def cost(package: str) -> tuple[float, int]:
    """(seconds to import a package, bytes it takes), measured in a fresh interpreter."""
    said = subprocess.run([sys.executable, "-c", COST, package], capture_output=True, text=True, check=True).stdout
    seconds, held = said.split()
    return float(seconds), int(held)


def eviction(
    ctx: Context, seed: int, packages: Sequence[str], costs: Sequence[tuple[float, int]], minutes: float
) -> float:
    """Total start time with eviction by benefit over that with LRU."""
    from dataclasses import replace

    from nubes.drivers.sim import simulate
    from nubes.functions.controller import Functions
    from nubes.functions.models import INTERPRETER_BYTES, INTERPRETER_S, NodeKind, TreeTimes

    workload = azure(ctx, 100)(seed).until(minutes * 60.0)
    sets = package_sets(seed, len(workload.specs), packages)
    seconds, held = (dict(zip(packages, column, strict=True)) for column in zip(*costs, strict=True))
    specs = tuple(
        msgspec.structs.replace(spec, code=Code(imports=wanted))
        for spec, wanted in zip(workload.specs, sets, strict=True)
    )
    whole = tuple(np.array([INTERPRETER_S + sum(seconds[name] for name in wanted)]) for wanted in sets)
    kinds: dict[NodeKind, tuple[tuple[float, int], ...]] = {
        ("", (name,), ""): ((seconds[name], held[name]),) for name in packages
    }
    tree = TreeTimes(grown={**kinds, ("", (), ""): ((INTERPRETER_S, INTERPRETER_BYTES),)})
    workload = replace(workload, specs=specs, start_s=whole, tree=tree)

    def tree_bytes(budget: float, policy: str) -> tuple[float, float]:
        """(total start seconds, most bytes of zygotes at any time)."""
        room = 1e15
        outcome = simulate(
            workload, Functions("sand", "fifo", policy, memory_bytes=room, tree_share=min(1.0, budget / room))
        )
        lives = outcome.lives
        ours = lives.function >= 0
        total = float((lives.ready_s - lives.start_s)[ours].sum())
        return total, float(lives.memory_bytes[~ours].sum())

    _, everything = tree_bytes(1e15, "sock")
    return tree_bytes(everything / 2.0, "sock")[0] / tree_bytes(everything / 2.0, "sock(evict=lru)")[0]
