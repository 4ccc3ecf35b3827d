"""Which server starts a model: where its checkpoint is near, and who makes room for it there.

From: ServerlessLLM: Low-Latency Serverless Inference for Large Language Models (OSDI 2024).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from nubes.kernel.policy import Policy, decision, seam

TIERS = ("memory", "disk", "remote")


class Checkpointed(msgspec.Struct, frozen=True):
    """A model as it is stored. A running request of it goes on elsewhere after `resume_s` of so many tokens."""

    name: int
    size_bytes: float
    gpus: int
    prefill_s: float = 1e-4  # a token, and at least
    fixed_s: float = 0.02
    token_s: float = 0.025
    usual_s: float = 5.0  # that a request of it runs, as learned from those before

    def resume_s(self, tokens: float) -> float:
        return self.prefill_s * tokens + self.fixed_s


@dataclass(slots=True)
class Inference:
    """One request that runs, or is being loaded: on a server until `ends_s`."""

    id: int
    model: Checkpointed
    prompt: int
    begun_s: float  # when its model was there
    ends_s: float
    settled: bool = True  # whether it may be moved: it is neither loaded nor moved right now

    def left_s(self, now: float) -> float:
        """How much longer it will run, as far as one can tell: of its usual time what is left, and never too little."""
        return max(self.begun_s + self.model.usual_s - now, 0.25 * self.model.usual_s)

    def tokens(self, now: float) -> float:
        """Prompt and answer so far, from the time it has run."""
        return self.prompt + max(0.0, now - self.begun_s) / self.model.token_s


@dataclass(slots=True)
class Server:
    """GPUs with memory and a disk beside them that hold checkpoints. `bandwidth` and `free_s` are by tier."""

    number: int
    gpus: int
    memory_bytes: float
    disk_bytes: float
    bandwidth: dict[str, float]
    disk: OrderedDict[int, float] = field(default_factory=OrderedDict)  # least recently used first
    memory: OrderedDict[int, float] = field(default_factory=OrderedDict)  # least recently used first
    running: dict[int, Inference] = field(default_factory=dict)
    free_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TIERS, 0.0))  # when each queue is empty

    @property
    def free(self) -> int:
        return self.gpus - sum(inference.model.gpus for inference in self.running.values())

    def tier(self, model: Checkpointed) -> str:
        if model.name in self.memory:
            return "memory"
        return "disk" if model.name in self.disk else "remote"

    def load_s(self, model: Checkpointed, now: float) -> float:
        """Seconds until it is loaded here: what is queued before it, then its bytes over the slowest link."""
        tier = self.tier(model)
        return max(0.0, self.free_s[tier] - now) + model.size_bytes / self.bandwidth[tier]

    def load(self, model: Checkpointed, now: float) -> float:
        """Begins to load it, and says how long that takes. It is in memory, and on disk, from then on."""
        took = self.load_s(model, now)
        self.free_s[self.tier(model)] = now + took
        self.keep(model)
        return took

    def keep(self, model: Checkpointed) -> None:
        """It was used last. Others go where there is no room."""
        for tier, room in ((self.memory, self.memory_bytes), (self.disk, self.disk_bytes)):
            tier[model.name] = model.size_bytes
            tier.move_to_end(model.name)
            while sum(tier.values()) > room and len(tier) > 1:
                tier.popitem(last=False)


class Placement(msgspec.Struct, frozen=True):
    """Where a model starts. `victims` leave first: (request, server it goes to)."""

    server: int
    victims: tuple[tuple[int, int], ...] = ()


@seam("startup", default="serverlessllm")
class Startup(Policy):
    """Which server starts a model for a request."""

    keeps: bool = True  # whether servers keep checkpoints at all

    @decision
    def choose(self, model: Checkpointed, servers: Sequence[Server], now: float) -> Placement | None:
        """None: it waits. The server has enough GPUs when the victims are gone."""
        raise NotImplementedError


def fewest(costs: Sequence[tuple[float, int]], gpus: int) -> tuple[float, list[int]] | None:
    """The cheapest of (cost, GPUs) that have at least `gpus` together, as indices; None if all have not.

    A knapsack by dynamic programming over GPUs.
    """
    best: list[tuple[float, list[int]] | None] = [(0.0, []), *([None] * gpus)]
    for at, (cost, size) in enumerate(costs):
        for have in range(gpus, 0, -1):
            before = best[max(0, have - size)]
            if before is None:
                continue
            total = before[0] + cost
            now = best[have]
            if now is None or total < now[0]:
                best[have] = (total, [*before[1], at])
    return best[gpus]
