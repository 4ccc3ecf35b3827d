"""What a fleet knows of its engines: plain data, made from a scheduler's state wherever that runs."""

from __future__ import annotations

from typing import Literal

import msgspec

from nubes.llm.scheduling.state import State

Role = Literal["both", "prefill", "decode"]


class Running(msgspec.Struct, array_like=True, gc=False):
    """A decoding sequence that could move."""

    id: int
    priority: int
    blocks: int
    tokens: int  # prompt and answer so far


class Report(msgspec.Struct, gc=False):
    """An engine at a moment. Blocks are of KV."""

    blocks: int
    free: int
    block_size: int = 16
    running: int = 0
    waiting: int = 0
    head_blocks: int = 0  # wanted by the first in line
    queued_blocks: int = 0  # wanted by all in line
    high: int = 0  # running sequences that go before others
    tokens: int = 0  # prompt tokens that wait for their KV
    sequences: list[Running] = []


def report(state: State, sequences: bool = False) -> Report:
    """`sequences`: whether to list those that run, which costs as much as there are."""
    size = state.block_size
    waiting = state.waiting
    needs = [-(-sequence.known // size) for sequence in waiting]
    said = Report(
        state.pool.size, state.pool.available, size, state.running + len(state.moving),
        len(waiting) + len(state.swapped), needs[0] if needs else 0, sum(needs),
        tokens=sum(s.known for s in waiting) + sum(s.todo for s in state.prefilling.values()),
    )  # fmt: skip
    if state.swapped:
        swapped = [len(sequence.host) for sequence in state.swapped.values()]
        said.queued_blocks += sum(swapped)
        said.head_blocks = swapped[0]
    said.high = sum(1 for s in state.decoding.values() if s.priority < 0)
    if sequences:
        said.sequences = [
            Running(s.id, s.priority, len(s.blocks), s.known) for s in state.decoding.values() if s.group == s.id
        ]
    return said


class Member:
    """An engine of the fleet, as policies see it."""

    __slots__ = ("draining", "number", "receiving", "report", "requests", "role", "sending")

    def __init__(self, number: int, role: Role, report: Report) -> None:
        self.number = number
        self.role = role
        self.report = report
        self.draining = False
        self.sending = 0  # sequences on their way from here
        self.receiving = 0  # and to here
        self.requests: set[int] = set()

    @property
    def load(self) -> int:
        """Requests that run or wait here."""
        return self.report.running + self.report.waiting
