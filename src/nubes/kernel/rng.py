"""Randomness that a seed and a name determine, so that a run can be repeated anywhere."""

from __future__ import annotations

import hashlib
import random


def rng(seed: int, *names: str | int) -> random.Random:
    """A generator of its own for each (seed, names): adding a consumer does not disturb the others."""
    text = repr([str(part) for part in (seed, *names)])
    return random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))
