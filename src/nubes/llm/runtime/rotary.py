"""Rotary position embedding (RoFormer, Su et al. 2021), the halves of a head turned against each other."""

from __future__ import annotations

import numpy as np

from nubes.llm.runtime.rows import Floats
from nubes.llm.spec import Shape


def angles(shape: Shape) -> Floats:
    """[context, head_dim]: cosines of a position's angles, then their sines; rounded where the peers round."""
    steps = np.arange(0, shape.head_dim, 2, dtype=np.float32) / np.float32(shape.head_dim)
    frequencies: Floats = np.float32(1) / np.float32(shape.rope_theta) ** steps
    if shape.rope_factors:
        frequencies /= np.array(shape.rope_factors, np.float32)
    turned = np.arange(shape.context, dtype=np.float32)[:, None] * frequencies
    return np.concatenate((np.cos(turned), np.sin(turned)), axis=1, dtype=np.float32)
