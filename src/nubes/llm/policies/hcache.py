"""HCache: dropped KV comes back from each layer's stored input, while the processor and the link both work."""

from __future__ import annotations

from math import ceil

from nubes.kernel.policy import Paper, policy
from nubes.llm.cache.restoration import Costs, Plan, seconds
from nubes.llm.seams import Restoration

PAPER = Paper("hcache", "HCache", "Fast State Restoration in LLM Serving with HCache", "EuroSys 2025")


@policy("tokens")
class Tokens(Restoration):
    """Everything is computed again; nothing is stored."""

    def plan(self, layers: int, costs: Costs) -> Plan:
        return Plan(tokens=layers, why="nothing is stored")


@policy("kv")
class OffloadedKv(Restoration):
    """Keys and values are stored, and loaded layer by layer."""

    def plan(self, layers: int, costs: Costs) -> Plan:
        return Plan(kv=layers, why="keys and values are stored")


@policy("hcache", paper=PAPER)
class HCache(Restoration):
    """The inputs of the layers are stored: half of what KV takes, and a projection away from it.

    Where the link is the slower side, the first layers are computed from tokens meanwhile; where the processor is, the
    last layers' KV is stored and loaded instead. With so few KV heads that KV is no larger than an input, all is KV.
    """

    def plan(self, layers: int, costs: Costs) -> Plan:
        if costs.kv_s <= costs.hidden_s:
            return Plan(
                kv=layers,
                why=f"KV is loaded in {costs.kv_s / costs.hidden_s:.0%} of the time of a layer's input, and needs no "
                "projection: the model has few KV heads",
            )
        choices = [split(layers, costs), Plan(hidden=layers, why="link and processor are in balance"),
                   Tokens().plan(layers, costs), OffloadedKv().plan(layers, costs)]  # fmt: skip
        return min(choices, key=lambda plan: seconds(plan, costs))


def split(layers: int, costs: Costs) -> Plan:
    """The number of layers from their inputs that keeps both the link and the processor busy to the end."""
    if costs.hidden_s > costs.project_s:
        exact = layers * costs.token_s / (costs.token_s + costs.hidden_s - costs.project_s)
        plans = [
            Plan(tokens=layers - hidden, hidden=hidden, why="the link is slower: first layers are computed meanwhile")
            for hidden in around(exact, layers)
        ]
    else:
        exact = layers * costs.kv_s / (costs.kv_s + costs.project_s - costs.hidden_s)
        plans = [
            Plan(hidden=hidden, kv=layers - hidden, why="the processor is slower: last layers' KV is loaded meanwhile")
            for hidden in around(exact, layers)
        ]
    return min(plans, key=lambda plan: seconds(plan, costs))


def around(exact: float, layers: int) -> range:
    """The whole numbers on both sides. The formula leaves out that the pipeline has to fill: one more either way."""
    return range(max(0, ceil(exact) - 2), min(layers, ceil(exact) + 1) + 1)
