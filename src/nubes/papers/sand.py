"""SAND: functions of one application as forks of their grain processes, with a local bus between them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from nubes.functions.policies.sand import PAPER
from nubes.papers import Claim, Context, Result, at_least, at_most, below, reproduction
from nubes.papers.live import cloud, cloud_bytes, module, settle, timed

BROKER = (
    "one process per function, kept warm; every hop through a central durable queue (fsync on accept and on answer)"
)
GRAINS = {"cold_start": "sand", "keep_alive": "sand"}
COLD_PROCESSES = {"cold_start": "fresh", "keep_alive": "sand"}
WARM_PROCESSES = {"cold_start": "fresh", "keep_alive": "no-unload"}
STEPS = ("decode", "resize", "classify", "store")

HOP = Claim(
    "A hop over the local bus is far shorter than one through a durable broker.",
    "median time of a hop with 1 kB, local bus / broker, processes warm in both",
    BROKER,
    at_most(1 / 3),
)
PIPELINE = Claim(
    "An image pipeline ends sooner than in one sandbox per function, although every event forks its grain.",
    "median time of the pipeline, SAND / a new process for each step behind the broker",
    "a new process for each step; every hop through a central durable queue",
    at_most(0.7),
    "0.57 (43 % less than OpenWhisk)",
)
WARM = Claim(
    "Also where those sandboxes stay warm.",
    "median time of the pipeline, SAND / broker",
    BROKER,
    at_most(0.7),
)
MEMORY = Claim(
    "Idle applications hold less memory.",
    "memory of 10 idle applications, SAND / broker",
    BROKER,
    below(1.0),
)
KILLED = Claim(
    "A grain killed while it runs costs one more execution of its event, and nothing else.",
    "share of killed chains that end right, with the killed step run exactly twice and the others once",
    "none",
    at_least(1.0),
    "1",
)

CHAIN = """
import nubes
app = nubes.App("chain")
""" + "\n".join(f"@app.function(cpu=0.01)\ndef f{i}(message):\n    return message\n" for i in range(5))

IMAGES = """
import zlib
import numpy as np
import nubes
app = nubes.App("{app}")

@app.function(cpu=0.01)
def decode(data):
    return np.frombuffer(zlib.decompress(data), np.uint8).reshape(512, 512, 3)

@app.function(cpu=0.01)
def resize(image):
    return image.reshape(64, 8, 64, 8, 3).mean(axis=(1, 3), dtype=np.float32)

@app.function(cpu=0.01)
def classify(image):
    weights = np.random.default_rng(0).standard_normal((image.size, 10), dtype=np.float32)
    return int(np.argmax(image.reshape(-1) @ weights))

@app.function(cpu=0.01)
def store(label):
    with open("{path}", "a") as file:
        file.write(f"{{label}}\\n")
    return label
"""

MARKED = """
import os, time
import nubes
app = nubes.App("marked")

def mark(step):
    with open("{path}", "a") as file:
        file.write(f"{{step}} {{os.getpid()}}\\n")

@app.function(cpu=0.01)
def first(x):
    mark("first")
    return x + 1

@app.function(cpu=0.01)
def second(x):
    mark("second")
    time.sleep(1.0)
    return x * 10

@app.function(cpu=0.01)
def third(x):
    mark("third")
    return x + 3
"""


@reproduction(
    PAPER,
    claims=(HOP, PIPELINE, WARM, MEMORY, KILLED),
    area="functions",
    seam="cold-start, keep-alive",
    mode="live",
)
def run(ctx: Context) -> Iterator[Result]:
    """A chain, an image pipeline, ten idle applications, and a grain killed while it runs."""
    rounds = ctx.pick(50, 500)
    hops = [hop_ratio(ctx, seed, rounds) for seed in ctx.each("chains of five")]
    yield ctx.result(HOP, hops, f"5-step chain with 1 kB messages, {rounds} times")
    pipelines = [pipeline_ratios(ctx, seed, rounds) for seed in ctx.each("image pipelines")]
    about = f"decode, resize, classify and store of a 512 x 512 image, {rounds} times"
    yield ctx.result(PIPELINE, [cold for cold, _ in pipelines], about)
    yield ctx.result(WARM, [warm for _, warm in pipelines], about)
    idle = [idle_ratio(ctx, seed) for seed in ctx.each("ten idle applications")]
    yield ctx.result(MEMORY, idle, "10 applications of 4 functions that import numpy, each called once")
    kills = ctx.pick(2, 10)
    survived = [sum(killed(ctx, seed, n) for n in range(kills)) / kills for seed in ctx.each("killing grains")]
    yield ctx.result(
        KILLED, survived, f"3-step chains handed in for good, the second step's process killed, {kills} times"
    )


def through_broker(functions: list[Any], value: Any) -> Any:
    """Every hop is handed in for good, and its answer fetched, before the next."""
    for function in functions:
        value = function.spawn(value).get()
    return value


def hop_ratio(ctx: Context, seed: int, rounds: int) -> float:
    """Time of one hop: what a chain of five takes beyond a single call, a quarter of it."""
    made = module(ctx.folder / "code", "nubes_chain", CHAIN)
    functions = [getattr(made, f"f{i}") for i in range(5)]
    message = os.urandom(1000)
    with cloud(ctx.folder / f"chain-{seed}", cold_start="sand", keep_alive="no-unload"), made.app.run():
        chain = functions[0].then(*functions[1:])

        def one() -> Any:
            return functions[0].remote(message)

        def ours() -> Any:
            return chain.remote(message)

        def theirs() -> Any:
            return through_broker(functions, message)

        def first() -> Any:
            return through_broker(functions[:1], message)

        for call in (one, ours, theirs, first):
            call()
        took = [[timed(call) for call in (one, ours, first, theirs)] for _ in range(rounds)]
    single, chained, handed, brokered = (median(column) for column in zip(*took, strict=True))
    return float(max(chained - single, 1e-9) / max(brokered - handed, 1e-9))


def pipeline_ratios(ctx: Context, seed: int, rounds: int) -> tuple[float, float]:
    """The image pipeline with a fork for every event, against new processes and warm ones behind a broker."""
    import zlib

    import numpy as np

    image = np.random.default_rng(seed).integers(0, 32, (512, 512, 3), np.uint8)
    data = zlib.compress(image.tobytes(), 1)
    took = []
    for nth, policies in enumerate((GRAINS, COLD_PROCESSES, WARM_PROCESSES)):
        made = images(ctx, f"images-{seed}")
        functions = [getattr(made, step) for step in STEPS]
        chain = functions[0].then(*functions[1:])

        def call(broker: bool = nth > 0, steps: Any = functions, chained: Any = chain) -> Any:
            return through_broker(steps, data) if broker else chained.remote(data)

        with cloud(ctx.folder / f"pipeline-{nth}-{seed}", **policies), made.app.run():
            call()
            times = [timed(call) for _ in range(max(3, rounds // 10) if policies is COLD_PROCESSES else rounds)]
        took.append(median(times))
    return took[0] / took[1], took[0] / took[2]


def images(ctx: Context, name: str) -> Any:
    """The image application, under a name of its own."""
    path = ctx.folder / f"{name}.txt"
    return module(ctx.folder / "code", f"nubes_{name.replace('-', '_')}", IMAGES.format(app=name, path=path))


def idle_ratio(ctx: Context, seed: int) -> float:
    """Memory of ten idle applications, each of whose functions has run once."""
    import zlib

    data = zlib.compress(bytes(512 * 512 * 3), 1)
    held = []
    for policies in (GRAINS, WARM_PROCESSES):
        apps = [images(ctx, f"idle-{seed}-{n}") for n in range(10)]
        with cloud(ctx.folder / f"idle-{policies['cold_start']}-{seed}", **policies) as client:
            for made in apps:
                made.app.deploy()
                made.decode.then(made.resize, made.classify, made.store).remote(data)
            settle(client, lambda status: all(one["state"] == "idle" for one in status["instances"]))
            held.append(cloud_bytes(client))
    return held[0] / held[1]


def killed(ctx: Context, seed: int, n: int) -> bool:
    """Whether a chain whose second step is killed while it runs ends right, that step run twice and the others once."""
    path = ctx.folder / f"marks-{seed}-{n}"
    made = module(ctx.folder / "code", f"nubes_marked_{seed}_{n}", MARKED.format(path=path))
    with cloud(ctx.folder / f"killed-{seed}-{n}", **GRAINS):
        made.app.deploy()
        call = made.first.then(made.second, made.third).spawn(1)
        os.kill(_pid_of(path, "second"), signal.SIGKILL)
        result = call.get(timeout=60)
    steps = [line.split()[0] for line in path.read_text().splitlines()]
    return bool(result == 23) and sorted(steps) == ["first", "second", "second", "third"]


def _pid_of(path: Path, step: str) -> int:
    until = time.monotonic() + 30.0
    while time.monotonic() < until:
        for line in path.read_text().splitlines() if path.exists() else ():
            if line.startswith(step):
                return int(line.split()[1])
        time.sleep(0.005)
    raise TimeoutError(f"{step} did not run")
