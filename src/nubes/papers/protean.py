"""Protean: the same decisions with and without caches, how much the caches save, and how well its rules pack."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import median
from time import perf_counter
from typing import Any

from nubes.cluster.allocation import Agent, Allocator, Inventory, Rulebook, Rules, Weights
from nubes.cluster.policies.protean import PAPER, vms
from nubes.cluster.seams import MachineView, Preference, Request, Validator
from nubes.kernel.rng import rng
from nubes.papers import Claim, Context, Result, at_least, at_most, below, reproduction
from nubes.papers.packing import MIXES, packed
from nubes.papers.zones import FILLED, fill, shares, types, zone
from nubes.workloads import openb

CLUSTERS = 10  # of the large zone: the larger each is, the more the caches save
AGENTS = 8

UNCACHED = "the same rules without caches, all asked of every machine of the clusters that are tried"
SAME = Claim(
    "Caches change no decision.",
    "share of decisions that are the same with and without them, for the same seed",
    UNCACHED,
    at_least(1.0),
    "caches are exact",
)
FASTER = Claim(
    "Caches make allocation many times faster.",
    "requests placed a second of allocation, with caches / without",
    UNCACHED,
    at_least(10.0),
    "allocation in tens of milliseconds for over 100,000 machines",
)
QUICK = Claim(
    "A placement is quick on one core.",
    "median of the time to place a request, ms",
    UNCACHED,
    below(10.0),
    "tens of milliseconds",
)
FEWER = Claim(
    "Caches remove most of the rule evaluations.",
    "rules evaluated for the same requests, with caches / without",
    UNCACHED,
    at_most(0.5),
    "most are removed",
)
PACKED = Claim(
    "Its preferences pack more before anything large is turned away.",
    "cores in use when the first request for a whole machine fails, Protean / first fit",
    "first fit",
    at_least(1.03),
    "high core utilisation",
)
PLACED = Claim(
    "Agents side by side place as much as one.",
    f"requests placed before the first is turned away, {AGENTS} agents / 1",
    "one agent",
    at_least(0.97),
)
CONFLICTS = Claim(
    "And seldom get in each other's way.",
    f"commits that fail, as another agent was there before, of all commits of {AGENTS} agents",
    "one agent: none",
    at_most(0.1),
)


@reproduction(
    PAPER,
    claims=(SAME, FASTER, QUICK, FEWER, PACKED, PLACED, CONFLICTS),
    area="cluster",
    seam="placement",
    mode="simulated",
)
def run(ctx: Context) -> Iterator[Result]:
    """A zone of 20,000 machines, a smaller one that fills up, and pods of a real cluster."""
    settle, few, many = ctx.pick((5000, 200, 5000), (50_000, 2000, 50_000))
    timed = [speed(seed, 20_000, settle, few, many) for seed in ctx.each("placing in a zone of 20,000 machines")]
    about = (
        f"20,000 machines in {CLUSTERS} clusters, {FILLED:.0%} of what is scarcest taken at random; 50 VM types; each "
    )
    about += (
        f"placement beside a departure. After {settle:,} of them {many:,} with caches, {few:,} of these also without"
    )
    for claim, values in zip((SAME, FASTER, QUICK, FEWER), zip(*timed, strict=True), strict=True):
        yield ctx.result(claim, values, about)
    size = ctx.pick(300, 2000)
    ratios = [packed(seed, size) for seed in ctx.each("filling a zone")]
    about = f"{size:,} machines, 50 VM types of 1/64 to 0.7 of a machine and whole ones, cores scarcer than memory, "
    about += f"churn at a load that rises over 5 mean lifetimes; mean of {MIXES} draws of types and requests"
    yield ctx.result(PACKED, ratios, about)
    sides = [beside(seed) for seed in ctx.each(f"{AGENTS} agents against 1")]
    about = "openb pods with GPUs on openb nodes with GPUs" if openb.folder() else "50 VM types on 1,200 machines"
    about += (
        f", {FILLED:.0%} of what is scarcest taken at random, then in an order drawn from the seed until one is turned "
    )
    about += f"away; each of {AGENTS} agents decides one on its copy, then all commit. A machine's GPUs are one sum"
    for claim, values in zip((PLACED, CONFLICTS), zip(*sides, strict=True), strict=True):
        yield ctx.result(claim, values, about)


# -- speed ---------------------------------------------------------------------------------------------------------


class Counted:
    """A rulebook that counts how often its rules are asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.books: dict[Weights, tuple[Rules, Rules]] = {}

    def __call__(self, weights: Weights) -> tuple[Rules, Rules]:
        if weights not in self.books:
            clusters, machines = vms(weights)
            self.books[weights] = (self.counting(clusters), self.counting(machines))
        return self.books[weights]

    def counting(self, rules: Rules) -> Rules:
        validators = [Validator(rule.name, rule.reads, self.count(rule.holds)) for rule in rules.validators]
        preferences = [Preference(rule.name, rule.reads, self.count(rule.score)) for rule in rules.preferences]
        return Rules(validators, preferences)

    def count(self, ask: Callable[[Request, MachineView], Any]) -> Callable[[Request, MachineView], Any]:
        def counted(request: Request, machine: MachineView) -> Any:
            self.asked += 1
            return ask(request, machine)

        return counted


def speed(seed: int, size: int, settle: int, few: int, many: int) -> tuple[float, float, float, float]:
    """(share of equal decisions, ratio of throughputs, median ms with caches, ratio of rules evaluated)."""
    draw = rng(seed, "protean speed")
    kinds = types(draw)
    often = shares(kinds, draw)
    full = zone(size, CLUSTERS)
    there = fill(full, lambda: draw.choices(kinds, often)[0], draw)
    warm = Stream(full, there, kinds, often, seed)
    warm.place(settle)
    slow = warm.copy(cached=False)
    counted = [Counted(), Counted()]
    fresh = warm.copy(cached=False, rulebook=counted[0])
    slow_ids, slow_s = slow.place(few)
    fresh.place(few)
    fast_ids, fast_s = warm.place(many)
    again = Stream(full, there, kinds, often, seed, counted[1])
    again.place(settle)
    counted[1].asked = 0
    again.place(few)
    same = sum(a == b for a, b in zip(slow_ids, fast_ids, strict=False)) / few
    ratio = (many / sum(fast_s)) / (few / sum(slow_s))
    return same, ratio, 1000.0 * median(fast_s), counted[1].asked / counted[0].asked


class Stream:
    """Requests that come one after the other, and one of those there leaves each time, at random."""

    def __init__(
        self, inventory: Inventory, there: Sequence[tuple[int, Request]], kinds: Sequence[Request],
        often: Sequence[float], seed: int, rulebook: Rulebook = vms, cached: bool = True,
    ) -> None:  # fmt: skip
        self.inventory, self.live, self.kinds, self.often = inventory.copy(), list(there), kinds, often
        self.draw = rng(seed, "protean requests")
        self.allocator = Allocator(self.inventory, rulebook, rng(seed, "protean choice"), cached)

    def copy(self, cached: bool, rulebook: Rulebook = vms) -> Stream:
        """Another that goes on from here."""
        other = Stream(self.inventory, self.live, self.kinds, self.often, 0, rulebook, cached)
        other.draw.setstate(self.draw.getstate())
        other.allocator.draw.setstate(self.allocator.draw.getstate())
        return other

    def place(self, count: int) -> tuple[list[int | None], list[float]]:
        """The machines chosen for `count` requests, and the seconds that each took."""
        chosen: list[int | None] = []
        took: list[float] = []
        for _ in range(count):
            request = self.draw.choices(self.kinds, self.often)[0]
            begun = perf_counter()
            id = self.allocator.choose(request)
            if id is not None:
                self.inventory.take(id, request)
            took.append(perf_counter() - begun)
            chosen.append(id)
            if id is not None:
                self.live.append((id, request))
            at = self.draw.randrange(len(self.live))
            self.live[at], self.live[-1] = self.live[-1], self.live[at]
            self.inventory.take(*self.live.pop(), -1)
        return chosen, took


# -- agents --------------------------------------------------------------------------------------------------------


def site(seed: int) -> tuple[Inventory, list[Request]]:
    """A cluster in use, and what arrives there: openb's where the trace is at hand, or else made-up VMs."""
    draw = rng(seed, "protean agents")
    found = openb.folder()
    if found is None:
        kinds = types(draw)
        inventory, arriving = zone(1200, 2), draw.choices(kinds, shares(kinds, draw), k=20_000)
    else:
        inventory = Inventory()
        for id, node in enumerate(openb.nodes(found)):
            if node.gpu:
                inventory.put(MachineView(id, node.cpu, node.memory_bytes, float(node.gpu), zone=node.model))
        pods = [Request("pod", pod.cpu, pod.memory_bytes, pod.gpu) for pod in openb.pods(found) if pod.gpu]
        arriving = draw.choices(pods, k=3 * len(pods))
    fill(inventory, lambda: draw.choice(arriving), draw)
    return inventory, arriving


def beside(seed: int) -> tuple[float, float]:
    """(requests placed before the first is turned away, many agents / one; share of commits that fail)."""
    inventory, arriving = site(seed)
    alone, _ = allocated(arriving, inventory.copy(), 1, seed)
    placed, failed = allocated(arriving, inventory.copy(), AGENTS, seed)
    return placed / alone, failed / (placed + failed)


def allocated(arriving: Sequence[Request], shared: Inventory, count: int, seed: int) -> tuple[int, int]:
    """(requests placed, commits that failed) of `count` agents, until one is turned away."""
    agents = [Agent(shared, vms, rng(seed, "protean agent", number)) for number in range(count)]
    placed = 0
    for first in range(0, len(arriving), count):
        turns = []
        for agent, request in zip(agents, arriving[first : first + count], strict=False):
            agent.sync()
            candidates = agent.decide(request)
            turns.append((agent, request, candidates, next(candidates, None)))
        for agent, request, candidates, id in turns:
            while id is not None and not agent.commit(id, request):
                id = next(candidates, None)
            if id is None:
                return placed, sum(agent.conflicts for agent in agents)
            placed += 1
    return placed, sum(agent.conflicts for agent in agents)
