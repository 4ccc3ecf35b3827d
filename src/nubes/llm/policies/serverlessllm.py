"""ServerlessLLM: models start where their checkpoints are; what runs there moves away instead of being waited for."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from nubes.kernel.policy import Paper, policy
from nubes.kernel.rng import rng
from nubes.llm.cluster.startup import Checkpointed, Inference, Placement, Server, Startup, fewest

PAPER = Paper(
    "serverlessllm",
    "ServerlessLLM",
    "ServerlessLLM: Low-Latency Serverless Inference for Large Language Models",
    "OSDI 2024",
)


@policy("serverlessllm", paper=PAPER)
class Migrating(Startup):
    """The server with the least estimated time to start: to load the model, and to get GPUs for it if they are busy.

    Those that are in its way move: that costs what their model takes to load elsewhere and their tokens to be computed
    there. Or it waits for them, if that is estimated to be shorter.
    """

    def choose(self, model: Checkpointed, servers: Sequence[Server], now: float) -> Placement | None:
        options = [self._at(server, model, servers, now) for server in servers if server.gpus >= model.gpus]
        return min(options, key=lambda option: option[0])[1]

    def _at(
        self, server: Server, model: Checkpointed, servers: Sequence[Server], now: float
    ) -> tuple[float, Placement | None]:
        """The estimated time to start there, and how; None: to wait."""
        load_s = server.load_s(model, now)
        if server.free >= model.gpus:
            return load_s, Placement(server.number)
        free = {other.number: other.free for other in servers if other is not server}
        leaving: list[tuple[Inference, Server]] = []
        costs: list[tuple[float, int]] = []
        for inference in server.running.values():
            target = self._target(inference, server, servers, free, now)
            if target is not None:
                free[target.number] -= inference.model.gpus
                leaving.append((inference, target))
                costs.append((target.load_s(inference.model, now) + _resume_s(inference, now), inference.model.gpus))
        waits = fewest([(i.left_s(now), i.model.gpus) for i in server.running.values()], model.gpus - server.free)
        wait_s = waits[0] if waits is not None else inf
        chosen = fewest(costs, model.gpus - server.free)
        if chosen is None or chosen[0] >= wait_s:
            return wait_s + load_s, None
        victims = tuple((leaving[at][0].id, leaving[at][1].number) for at in chosen[1])
        return chosen[0] + load_s, Placement(server.number, victims)

    def _target(
        self, inference: Inference, server: Server, servers: Sequence[Server], free: dict[int, int], now: float
    ) -> Server | None:
        """Where it could go soonest, if that is before it ends."""
        able = [s for s in servers if s is not server and free[s.number] >= inference.model.gpus]
        if not able or not inference.settled:
            return None
        target = min(able, key=lambda s: (s.load_s(inference.model, now), s.number))
        takes = target.load_s(inference.model, now) + _resume_s(inference, now)
        return target if takes < inference.left_s(now) else None


def _resume_s(inference: Inference, now: float) -> float:
    return inference.model.resume_s(inference.tokens(now))


@policy("locality", paper=PAPER)
class Locality(Startup):
    """The server that has the checkpoint nearest, waited for if its GPUs are busy."""

    def choose(self, model: Checkpointed, servers: Sequence[Server], now: float) -> Placement | None:
        able = [server for server in servers if server.gpus >= model.gpus]
        nearest = min(able, key=lambda s: (s.load_s(model, now), s.number))
        return Placement(nearest.number) if nearest.free >= model.gpus else None


@policy("random", paper=PAPER)
class Anywhere(Startup):
    """Any server with free GPUs, by chance."""

    def __init__(self, seed: int = 0) -> None:
        self._draw = rng(seed, "startup")

    def choose(self, model: Checkpointed, servers: Sequence[Server], now: float) -> Placement | None:
        able = [server for server in servers if server.free >= model.gpus]
        return Placement(able[int(self._draw.random() * len(able))].number) if able else None


@policy("remote", paper=PAPER)
class Remote(Anywhere):
    """The same where no server keeps checkpoints: every start fetches its model."""

    keeps = False
