"""Rope scaling, brought to one form: what each frequency is divided by."""

from __future__ import annotations

from collections.abc import Mapping
from math import pi
from typing import Any

from nubes.kernel.errors import UsageError


def linear(factor: float, head_dim: int) -> tuple[float, ...]:
    """Every position is `factor` times nearer (Chen et al. 2023, "Extending Context Window ... via Positional
    Interpolation")."""
    return () if factor == 1 else (factor,) * (head_dim // 2)


def llama3(
    theta: float, head_dim: int, *, factor: float, low_freq_factor: float, high_freq_factor: float, original: float
) -> tuple[float, ...]:
    """Llama 3.1: long waves are slowed by `factor`, short ones are left, and those between go over smoothly.

    Long: over original / low_freq_factor positions; short: under original / high_freq_factor.
    """
    factors = []
    for i in range(head_dim // 2):
        turns = original / (2 * pi * theta ** (2 * i / head_dim))  # in the original context
        smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor)
        smooth = min(1.0, max(0.0, smooth))
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return tuple(factors)


def factors(kind: str, theta: float, head_dim: int, values: Mapping[str, Any]) -> tuple[float, ...]:
    """From the fields of a Hugging Face `rope_scaling`. Raises `UsageError` for kinds that are not supported."""
    try:
        if kind in ("default", "none"):
            return ()
        if kind == "linear":
            return linear(float(values["factor"]), head_dim)
        if kind == "llama3":
            low, high = float(values["low_freq_factor"]), float(values["high_freq_factor"])
            if high <= low:
                raise UsageError(f"Rope scaling llama3 wants low_freq_factor {low} below high_freq_factor {high}.")
            return llama3(
                theta,
                head_dim,
                factor=float(values["factor"]),
                low_freq_factor=low,
                high_freq_factor=high,
                original=float(values["original_max_position_embeddings"]),
            )
    except KeyError as missing:
        raise UsageError(f"Rope scaling {kind} wants {missing}, which the model's config does not have.") from None
    raise UsageError(f"Rope scaling {kind} is not supported.", "Supported: none, linear, llama3.")
