"""Parrot: calls scheduled as parts of the program that they belong to."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Many
from typing import ClassVar

from nubes.kernel.policy import Paper, policy
from nubes.llm.cluster.member import Member
from nubes.llm.cluster.seams import Ask, Routing
from nubes.llm.policies.sarathi import StallFree
from nubes.llm.scheduling.sequence import WAITING, Sequence
from nubes.llm.scheduling.state import State
from nubes.llm.seams import Batch, Ordering
from nubes.llm.spec import Work

PAPER = Paper(
    "parrot",
    "Parrot",
    "Parrot: Efficient Serving of LLM-based Applications with Semantic Variable",
    "OSDI 2024",
)

JOBS, TOKENS = 4, 4096  # beside a call that somebody waits for, itself included
REMEMBERED = 4096  # prefixes


def urgent(work: Work | None) -> bool:
    """Whether somebody waits for this very answer; of a request by itself nothing else is known."""
    return work is None or work.criterion != "throughput"


@policy("parrot", paper=PAPER)
class Deepest(Ordering):
    """The call that is furthest into its program goes first, and among equals that of the program that came first.

    So programs end one after the other, where in the order of requests all of them would be under way, and end late.
    """

    def rank(self, sequence: Sequence, now: float) -> tuple[float, ...]:
        work = sequence.work
        if work is None:
            return (sequence.priority, -1, sequence.arrived_s, sequence.arrived_s)
        return (sequence.priority, -work.depth, work.begun_s, sequence.arrived_s)


@policy("parrot", paper=PAPER)
class Capped(StallFree):
    """Small batches while somebody waits for a single answer, large ones while all are wanted for throughput.

    As Sarathi-Serve's, but with a call that somebody waits for, running or next in line, at most `jobs` sequences run
    and hold at most `tokens`. A request that is part of no program counts as such a call.
    """

    def __init__(self, budget: int = 512, max_seqs: int = 256, jobs: int = JOBS, tokens: int = TOKENS) -> None:
        super().__init__(budget, max_seqs)
        self.jobs = jobs
        self.tokens = tokens

    def compose(self, state: State, now: float) -> Batch:
        batch = super().compose(state, now)
        if not any(sequence.state == WAITING for sequence, _ in batch.prompts):
            return batch
        running = [*state.decoding.values(), *state.prefilling.values()]
        capped = any(urgent(sequence.work) for sequence in running)
        jobs, tokens = state.running, sum(sequence.known for sequence in running)
        kept: list[tuple[Sequence, int]] = []
        for sequence, rows in batch.prompts:
            if sequence.state == WAITING:
                capped = capped or urgent(sequence.work)
                jobs += sequence.width
                tokens += sequence.known
                if capped and (jobs > self.jobs or tokens > self.tokens) and (running or kept):
                    break
            kept.append((sequence, rows))
        return Batch(batch.decode, kept)


@policy("parrot", paper=PAPER)
class Together(Routing):
    """A task group on one engine, requests where their prefix is, and where they hurt others least.

    An engine that serves a call somebody waits for holds at most `jobs` requests of `tokens` together. Those that
    belong together go where the first of them went. A call somebody waits for goes to an engine of such calls while
    there is room, else to an empty one, and only then among calls for throughput, if these are few. One that finds no
    place waits, and the engine with the fewest requests is kept free of others for it.
    """

    passes: ClassVar[bool] = True

    def __init__(self, jobs: int = JOBS, tokens: int = TOKENS) -> None:
        self.jobs = jobs
        self.tokens = tokens
        self._asks: dict[int, Ask] = {}  # what was placed and may still be there
        self._groups: dict[str, int] = {}  # group -> engine
        self._prefixes: dict[str, int] = {}  # prefix -> engine that had it last
        self._kept: set[int] = set()  # engines that are kept free, in this round

    def line(self, asks: Many[Ask], members: Many[Member], now: float) -> Many[Ask]:
        self._kept = set()
        there = {id for member in members for id in member.requests}
        self._asks = {id: ask for id, ask in self._asks.items() if id in there}
        groups = {ask.work.group for ask in (*asks, *self._asks.values()) if ask.work is not None}
        self._groups = {group: number for group, number in self._groups.items() if group in groups}
        return sorted(asks, key=_place)

    def choose(self, ask: Ask, members: Many[Member], now: float) -> Member | None:
        able = [member for member in members if member.number not in self._kept and self._fits(ask, member)]
        if not able:
            spare = [member for member in members if member.number not in self._kept]
            if spare:
                self._kept.add(min(spare, key=lambda m: (len(m.requests), m.number)).number)
            return None
        work = ask.work
        chosen = next(
            (m for m in able if work is not None and work.group and m.number == self._groups.get(work.group)), None
        )
        if chosen is None:
            chosen = min(able, key=lambda member: self._cost(ask, member))
        self._asks[ask.id] = ask
        if work is not None:
            if work.group:
                self._groups[work.group] = chosen.number
            for prefix, _ in work.prefixes:
                self._prefixes.pop(prefix, None)
                self._prefixes[prefix] = chosen.number
            while len(self._prefixes) > REMEMBERED:
                del self._prefixes[next(iter(self._prefixes))]
        return chosen

    def _here(self, member: Member) -> Iterable[Ask]:
        return (self._asks[id] for id in member.requests if id in self._asks)

    def _fits(self, ask: Ask, member: Member) -> bool:
        """Whether all that would be there keep their bounds."""
        here = list(self._here(member))
        if not here or not (urgent(ask.work) or any(urgent(other.work) for other in here)):
            return True
        tokens = ask.known + sum(other.known for other in here)
        return len(here) < self.jobs and tokens <= self.tokens

    def _cost(self, ask: Ask, member: Member) -> tuple[float, ...]:
        """What placing it there does to those that are there, then how much is computed and waited for."""
        here = list(self._here(member))
        tokens = sum(other.known for other in here) + ask.known - self._shared(ask, member)
        if urgent(ask.work):
            lowers = any(not urgent(other.work) for other in here)
            return (lowers, not here, tokens, member.number)
        return (any(urgent(other.work) for other in here), tokens, member.number)

    def _shared(self, ask: Ask, member: Member) -> int:
        """Tokens at the beginning of its prompt that the engine had last."""
        prefixes = ask.work.prefixes if ask.work is not None else ()
        return max((tokens for prefix, tokens in prefixes if self._prefixes.get(prefix) == member.number), default=0)


def _place(ask: Ask) -> tuple[float, ...]:
    work = ask.work
    return (ask.priority, -1.0, 0.0, ask.id) if work is None else (ask.priority, -work.depth, work.begun_s, ask.id)
