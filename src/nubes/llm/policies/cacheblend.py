"""CacheBlend: the KV of texts is put together, and computed again where the texts before it matter most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from nubes.kernel.errors import UsageError
from nubes.kernel.policy import Paper, policy
from nubes.llm.seams import Fusion

if TYPE_CHECKING:
    from numpy.typing import NDArray

PAPER = Paper(
    "cacheblend",
    "CacheBlend",
    "CacheBlend: Fast Large Language Model Serving for RAG with Cached Knowledge Fusion",
    "EuroSys 2025",
)


@policy("exact")
class Exact(Fusion):
    """Everything is computed; texts give no shortcut but as a prefix that was there before."""

    def share(self, prefill_s: float, load_s: float) -> float:
        return 1.0

    def select(self, deviation: NDArray[np.float32], count: int) -> NDArray[np.intp]:
        return np.arange(len(deviation))[:count]


@policy("reuse")
class Reuse(Exact):
    """Only what follows the texts is computed: it attends to them, they do not attend to each other."""

    def share(self, prefill_s: float, load_s: float) -> float:
        return 0.0


@policy("cacheblend", paper=PAPER)
class CacheBlend(Fusion):
    """Computes the tokens whose values deviate most from what was stored, and more of them while KV loads anyway.

    `share` is the least; loading that takes longer than computing that much leaves time for more. The first check layer
    keeps a quarter more than the share, the next one the share. `pick=random` is what it is compared with.
    """

    filters: ClassVar[tuple[float, ...]] = (1.25, 1.0)

    def __init__(self, share: float = 0.16, pick: str = "deviation", seed: int = 0) -> None:
        if not 0 <= share <= 1 or pick not in ("deviation", "random"):
            raise UsageError("share is from 0 to 1, and pick is deviation or random.", "Leave them out.")
        self.least = share
        self.pick = pick
        self._draw = np.random.default_rng(seed)

    def share(self, prefill_s: float, load_s: float) -> float:
        return min(1.0, max(self.least, load_s / prefill_s if prefill_s > 0 else 0.0))

    def select(self, deviation: NDArray[np.float32], count: int) -> NDArray[np.intp]:
        if self.pick == "random":
            return np.sort(self._draw.permutation(len(deviation))[:count])
        return np.sort(np.argsort(-deviation, kind="stable")[:count])


def cheapest(load_s: Sequence[float], prefill_s: float, share: float) -> int:
    """The last (cheapest) of the storage tiers, fastest first, from which KV comes while `share` is computed.

    The fastest, if none does.
    """
    fit = [nth for nth, each in enumerate(load_s) if each <= share * prefill_s]
    return fit[-1] if fit else 0
