"""Functions with different imports, for the tests of the process tree. Nothing is imported at the top on purpose."""

from __future__ import annotations

import os
import random
import sys

import nubes

app = nubes.App("tree")
WATCHED = ("numpy", "scipy", "torch", "pandas", "rich", "starlette")


def seen() -> list[str]:
    return sorted(name for name in WATCHED if name in sys.modules)


@app.function(single_use=True)
def plain() -> tuple[list[str], int]:
    return seen(), os.getppid()


@app.function(single_use=True)
def with_numpy() -> list[str]:
    import numpy

    assert numpy.ones(3).sum() == 3
    return seen()


@app.function(single_use=True)
def with_scipy() -> list[str]:
    import scipy.linalg

    assert scipy.linalg.det([[2.0, 0.0], [0.0, 3.0]]) == 6
    return seen()


@app.function(single_use=True)
def draw() -> tuple[float, float, float, bytes]:
    """One random number from each generator that a parent may have set up."""
    import numpy as np

    return random.random(), float(np.random.rand()), float(np.random.default_rng().random()), os.urandom(8)


@app.function(single_use=True)
def threads_and_product() -> dict[str, object]:
    """What NumPy and SciPy do in a forked child: threads used, and a product that is computed in parallel."""
    import numpy as np
    import scipy.linalg

    return measure(np, scipy.linalg)


@app.function(single_use=True)
def threads_and_product_torch() -> dict[str, object]:
    import torch

    return measure_torch(torch)


def measure(np: object, linalg: object) -> dict[str, object]:
    a = np.arange(640_000, dtype=np.float64).reshape(800, 800) % 7  # type: ignore[attr-defined]
    product = float((a @ a).sum())
    solved = float(linalg.solve(a + 800 * np.eye(800), np.ones(800)).sum())  # type: ignore[attr-defined]
    return {"product": product, "solved": solved, "threads": len(os.listdir("/proc/self/task"))}


def measure_torch(torch: object) -> dict[str, object]:
    a = torch.arange(640_000, dtype=torch.float64).reshape(800, 800) % 7  # type: ignore[attr-defined]
    product = float((a @ a).sum())
    big = torch.ones(4_000_000).exp().sum()  # type: ignore[attr-defined]
    return {
        "product": product,
        "sum": float(big),
        "intra": torch.get_num_threads(),  # type: ignore[attr-defined]
        "threads": len(os.listdir("/proc/self/task")),
    }


@app.function(single_use=True)
def draw_torch() -> float:
    import torch

    return float(torch.rand(1))


if __name__ == "__main__":  # a fresh process, to compare with
    import json

    if sys.argv[1] == "numpy":
        import numpy
        import scipy.linalg

        print(json.dumps(measure(numpy, scipy.linalg)))
    else:
        import torch

        print(json.dumps(measure_torch(torch)))
