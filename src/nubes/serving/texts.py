"""Policies in words, one for each of many choosers."""

from __future__ import annotations

from typing import Any

from nubes.kernel.policy import make


def seeded(seam: str, text: str, seed: int) -> Any:
    """The policy of that text with a seed of its own, so that many choosers do not draw alike: `random`, 3."""
    head = text.strip().removesuffix(")").rstrip().rstrip(",")
    if "(" not in head:
        return make(seam, f"{head}(seed={seed})")
    return make(seam, f"{head}{'' if head.endswith('(') else ','}seed={seed})")
