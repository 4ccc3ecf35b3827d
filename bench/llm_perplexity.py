"""What few bits cost: perplexity of int8 and int4 weights against fp32: `python bench/llm_perplexity.py [--tokens N]`.

The texts are on every machine with Python, and the tests use others. Each is cut into windows of
512 tokens; every token but a window's first counts. It fails if int8 costs more than its limit on any text.
"""

from __future__ import annotations

import argparse
import json
import pkgutil
import sys
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np

from nubes.llm.checkpoint import load
from nubes.llm.engine.opening import open_runtime
from nubes.llm.runtime.rows import causal

MODEL = "smollm2-135m"
LIMITS = {"int8": 0.01, "int4": 0.02}  # of perplexity, above that of fp32; what is said of each
WINDOW = 512
LICENSE = Path("/usr/share/common-licenses/GPL-3")
MODULES = ("argparse", "ast", "asyncio", "configparser", "csv", "decimal", "doctest", "email", "fractions", "ipaddress",
           "logging", "optparse", "pdb", "pickle", "random", "shelve", "statistics", "string", "tarfile", "textwrap",
           "threading", "turtle", "typing", "unittest", "urllib", "weakref", "zipfile")  # fmt: skip


def texts() -> dict[str, str]:
    """English by what it is."""
    found = {
        "Python's help, the last topics": " ".join(" ".join(text.split()) for _, text in sorted(topics.items())[-25:])
    }
    said = [pkgutil.resolve_name(name).__doc__ or "" for name in MODULES]
    found["docstrings of Python's modules"] = "\n\n".join(said)
    if LICENSE.exists():
        found["the GPL, version 3"] = LICENSE.read_text()
    return found


def perplexity(runtime: Any, tokens: list[int]) -> float:
    """Of all windows but a last one that is not full."""
    loss, count = 0.0, 0
    rows = causal([(range(-(-WINDOW // runtime.block_size)), 0, WINDOW)])
    for at in range(0, len(tokens) - WINDOW + 1, WINDOW):
        piece = np.array(tokens[at : at + WINDOW], np.int32)
        logits = np.asarray(runtime.step(piece, rows, np.arange(WINDOW, dtype=np.int32)), np.float64)[:-1]
        logits -= logits.max(axis=1, keepdims=True)
        loss += float((np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(WINDOW - 1), piece[1:]]).sum())
        count += WINDOW - 1
    return float(np.exp(loss / count))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tokens", type=int, default=6144, help="of each text, at most")
    options.add_argument("--model", default=MODEL)
    options.add_argument("--json", action="store_true")
    asked = options.parse_args()
    if asked.tokens < WINDOW:
        options.error(f"--tokens is at least {WINDOW}")
    checkpoint = load(asked.model)
    tokens = {name: checkpoint.tokens.encode(text)[: asked.tokens] for name, text in texts().items()}
    found: dict[str, dict[str, float]] = {name: {} for name in tokens}
    for format in ("fp32", *LIMITS):
        runtime = open_runtime(checkpoint, format, "cpu", kv_bytes=1 << 27)
        for name, of in tokens.items():
            found[name][format] = perplexity(runtime, of)
        runtime.close()
    missed = [name for name, of in found.items() if of["int8"] / of["fp32"] - 1 > LIMITS["int8"]]
    if asked.json:
        print(json.dumps({"model": asked.model, "perplexity": found, "limits": LIMITS, "holds": not missed}))
        sys.exit(bool(missed))
    print(f"\nPerplexity of {asked.model}, windows of {WINDOW} tokens")
    print(f"  {'':<34}{'tokens':>7}{'fp32':>9}" + "".join(f"{name:>9}{'':>9}" for name in LIMITS))
    for name, of in found.items():
        costs = "".join(f"{of[format]:>9.3f}{of[format] / of['fp32'] - 1:>+9.2%}" for format in LIMITS)
        print(f"  {name:<34}{len(tokens[name]) // WINDOW * WINDOW:>7,}{of['fp32']:>9.3f}{costs}")
    for format, limit in LIMITS.items():
        worst = max(of[format] / of["fp32"] - 1 for of in found.values())
        verdict = "holds" if worst <= limit else "DOES NOT HOLD"
        print(f"  {format} costs {worst:+.2%} at most (limit {limit:.0%}): {verdict}")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
