"""What each call of a graph is wanted for, deduced from what somebody waits for in the end.

From: Parrot: Efficient Serving of LLM-based Applications with Semantic Variable (OSDI 2024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from nubes.llm.graphs.spec import Chain
from nubes.llm.spec import Criterion


class Wanted(msgspec.Struct, frozen=True):
    """How a chain shall be run. `group`: the number of the task group it is part of; -1: of none."""

    criterion: Criterion
    depth: int  # 1 + that of the deepest chain it needs
    group: int = -1


def depths(chains: Sequence[Chain]) -> dict[int, int]:
    """Of each chain: 1 if it needs no other, else 1 + that of the deepest it needs. The graph has no cycles."""
    made = {chain.output: chain for chain in chains}
    found: dict[int, int] = {}
    stack = list(chains)
    while stack:
        chain = stack[-1]
        before = [made[name] for name in chain.inputs if name in made]
        missing = [other for other in before if other.number not in found]
        if missing:
            stack += missing
            continue
        stack.pop()
        found[chain.number] = 1 + max((found[other.number] for other in before), default=0)
    return found


def deduce(chains: Sequence[Chain], get: Mapping[str, Criterion]) -> dict[int, Wanted]:
    """The chains somebody's variable needs, and what for; the others are not in it.

    Backwards from the deepest. A chain whose result somebody waits for is wanted as they say. What a chain, or a group
    of chains, needs of one depth is a task group if it is several: each may take its time, as long as all end soon, so
    they are run for throughput. If it is a single one, all wait for it: it is wanted as soon, in full, as they are.
    What several want is wanted as the strictest says.
    """
    made = {chain.output: chain for chain in chains}
    depth = depths(chains)
    urgent = {made[name].number: wanted != "throughput" for name, wanted in get.items() if name in made}
    alone = {made[name].number for name, wanted in get.items() if name in made and wanted != "throughput"}
    group: dict[int, int] = {}
    groups = 0
    for level in range(max(depth.values(), default=0), 0, -1):
        units: dict[int, list[Chain]] = {}
        for chain in chains:
            number = chain.number
            if depth[number] == level and number in urgent:
                if number in alone:
                    group.pop(number, None)
                units.setdefault(group.get(number, -1 - number), []).append(chain)
        for unit in units.values():
            soon = any(urgent[chain.number] for chain in unit)
            needed: dict[int, set[int]] = {}
            for chain in unit:
                for name in chain.inputs:
                    if name in made:
                        needed.setdefault(depth[made[name].number], set()).add(made[name].number)
            for members in needed.values():
                for number in sorted(members):
                    urgent[number] = urgent.get(number, False) or soon
                    if len(members) > 1:
                        group.setdefault(number, groups)
                    elif soon:
                        alone.add(number)
                groups += len(members) > 1
    found = {}
    for chain in chains:
        number = chain.number
        if number in urgent:
            said = get.get(chain.output, "throughput")
            criterion: Criterion = "latency" if said == "throughput" and number in alone else said
            found[number] = Wanted(criterion, depth[number], group.get(number, -1))
    return found
