"""Seeded random columns, and the published fits they are drawn from."""

from __future__ import annotations

import hashlib
from math import gamma, log, sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

START_SAMPLES = 64  # start times drawn for a function; they are handed out in turn

# Cold starts of all regions ("Serverless Cold Starts and Where to Find Them", EuroSys 2025): mean and std.
HUAWEI_START_S = (3.24, 7.10)  # of a cold start's time, LogNormal
HUAWEI_GAP_S = (1.25, 3.66)  # between cold starts, Weibull


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """A generator of its own for each (seed, names)."""
    import numpy as np

    text = "/".join(str(part) for part in (seed, *names))
    return np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")))


def lognormal(draw: np.random.Generator, mean: float, std: float, n: int) -> NDArray[np.float64]:
    """[n] LogNormal values of that mean and standard deviation."""
    variance = log(1.0 + (std / mean) ** 2)
    return draw.lognormal(log(mean) - variance / 2.0, sqrt(variance), n)


def weibull(draw: np.random.Generator, mean: float, std: float, n: int) -> NDArray[np.float64]:
    """[n] Weibull values of that mean and standard deviation."""
    shape, scale = weibull_of(mean, std)
    return draw.weibull(shape, n) * scale


def weibull_of(mean: float, std: float) -> tuple[float, float]:
    """Shape and scale of the Weibull distribution with that mean and standard deviation."""
    low, high = 0.1, 20.0
    for _ in range(100):  # its coefficient of variation falls as its shape rises
        shape = (low + high) / 2.0
        if gamma(1.0 + 2.0 / shape) / gamma(1.0 + 1.0 / shape) ** 2 - 1.0 > (std / mean) ** 2:
            low = shape
        else:
            high = shape
    return shape, mean / gamma(1.0 + 1.0 / shape)


def starts(seed: int, name: str, start_s: float | None) -> NDArray[np.float64]:
    """Start times of one function: `start_s` each time, or else drawn from Huawei's LogNormal fit."""
    import numpy as np

    if start_s is not None:
        return np.array([start_s])
    return lognormal(generator(seed, "start", name), *HUAWEI_START_S, START_SAMPLES)
