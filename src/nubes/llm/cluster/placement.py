"""How many devices of what kind of parallelism prompts and answers get: apart, each as it wants, or together.

From: DistServe: Disaggregating Prefill and Decoding for Goodput-optimized Large Language Model Serving (OSDI 2024).
Goodput is the highest rate at which enough requests keep both limits. Who measures it is passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, inf

import msgspec

from nubes.kernel.errors import UsageError

Goodput = Callable[["Parallel"], float]


class Slo(msgspec.Struct, frozen=True):
    """Times to the first token and between tokens, and which share of the requests has to keep both."""

    ttft_s: float
    tpot_s: float
    share: float = 0.9


class Parallel(msgspec.Struct, frozen=True, order=True):
    """One engine over `tp` devices a stage and `pp` stages."""

    tp: int
    pp: int = 1

    @property
    def devices(self) -> int:
        return self.tp * self.pp

    def __str__(self) -> str:
        return f"tp={self.tp},pp={self.pp}"


class Plan(msgspec.Struct, frozen=True):
    """Engines for a rate. Together: `decode` is None. `per_device`: goodput by device, requests a second."""

    prefill: Parallel
    prefills: int
    decode: Parallel | None
    decodes: int
    per_device: float

    @property
    def devices(self) -> int:
        return self.prefill.devices * self.prefills + (self.decode.devices * self.decodes if self.decode else 0)

    @property
    def words(self) -> str:
        if self.decode is None:
            return f"together: {self.prefills} x ({self.prefill})"
        return f"apart: {self.prefills} x ({self.prefill}) for prompts, {self.decodes} x ({self.decode}) for answers"


# -- queues in formulas -----------------------------------------------------------------------------------------------


def queued_ttft_s(rate: float, service_s: float) -> float:
    """Mean time to the first token of prompts of one length that come at random to one engine (M/D/1)."""
    busy = rate * service_s
    return inf if busy >= 1 else service_s + rate * service_s**2 / (2 * (1 - busy))


def pipeline_ttft_s(rate: float, service_s: float) -> float:
    """The same over two stages, each of which takes half of the time."""
    busy = rate * service_s
    return inf if busy >= 2 else service_s + rate * service_s**2 / (4 * (2 - busy))


def tensor_ttft_s(rate: float, service_s: float, speedup: float) -> float:
    """The same on two devices that work on each prompt together, `speedup` times as fast as one."""
    return queued_ttft_s(rate, service_s / speedup)


# -- search -----------------------------------------------------------------------------------------------------------


def best(space: Sequence[Parallel], goodput: Goodput) -> tuple[Parallel, float]:
    """The one with the most goodput by device, and its goodput; of equals, the one with the fewest devices."""
    if not space:
        raise UsageError("The model fits none of these devices.", "Allow more of them, or larger ones.")
    rated = [(goodput(parallel), parallel) for parallel in space]
    rate, parallel = max(rated, key=lambda entry: (entry[0] / entry[1].devices, -entry[1].devices))
    return parallel, rate


def apart(rate: float, space: Sequence[Parallel], prefill: Goodput, decode: Goodput) -> Plan:
    """The best plan for each phase by itself, and as many engines of each as `rate` takes."""
    p, p_rate = best(space, prefill)
    d, d_rate = best(space, decode)
    return _split(rate, p, p_rate, d, d_rate)


def apart_in_node(rate: float, space: Sequence[Parallel], node: int, prefill: Goodput, decode: Goodput) -> Plan:
    """Where links are fast within a node of `node` devices only: a stage of both phases lies in one node, whole.

    So both have as many stages, and a stage's devices fit a node together.
    """
    pairs = [(p, d) for p in space for d in space if p.pp == d.pp and p.tp + d.tp <= node]
    if not pairs:
        raise UsageError(f"No two engines fit a node of {node} devices.", "Let KV cross between nodes.")
    p_rates = {p: prefill(p) for p in {p for p, _ in pairs}}
    d_rates = {d: decode(d) for d in {d for _, d in pairs}}
    plans = [_split(rate, p, p_rates[p], d, d_rates[d]) for p, d in pairs]
    return max(plans, key=lambda plan: (plan.per_device, -plan.devices))


def together(rate: float, space: Sequence[Parallel], colocated: Goodput) -> Plan:
    parallel, of = best(space, colocated)
    return Plan(parallel, max(1, ceil(rate / of)) if of else 0, None, 0, of / parallel.devices)


def advise(one: Plan, other: Plan) -> Plan:
    """The plan with more goodput by device; of equals the first."""
    return other if other.per_device > one.per_device else one


def _split(rate: float, p: Parallel, p_rate: float, d: Parallel, d_rate: float) -> Plan:
    if not p_rate or not d_rate:
        return Plan(p, 0, d, 0, 0.0)
    prefills, decodes = max(1, ceil(rate / p_rate)), max(1, ceil(rate / d_rate))
    sustained = min(prefills * p_rate, decodes * d_rate)
    return Plan(p, prefills, d, decodes, sustained / (prefills * p.devices + decodes * d.devices))
