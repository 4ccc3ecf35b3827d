"""Attempts of calls, whose operations are counted: where faults have their places, simulated and live."""

from __future__ import annotations

import random

from nubes.kernel.rng import rng
from nubes.storm.spec import CLOCK, DELAY, KILL, MACHINE, RESTART, Fault


class Attempt:
    """One attempt of a call, or (with id 0) the scenario. `call` is its path, where that is known."""

    __slots__ = ("after", "call", "calls", "chance", "function", "id", "number")

    def __init__(self, id: int, call: str, function: str, number: int) -> None:
        self.id = id
        self.call = call
        self.function = function
        self.number = number
        self.after = 0  # operations done
        self.calls = 0  # calls made
        self.chance: random.Random | None = None

    @property
    def point(self) -> tuple[str, str, int, int]:
        return self.call, self.function, self.number, self.after


def chance_of(seed: int, attempt: Attempt) -> random.Random:
    """What an attempt draws from: its own, so that nobody else's draws change it."""
    if attempt.chance is None:
        attempt.chance = rng(seed, attempt.id, attempt.function, attempt.number)
    return attempt.chance


def describe(fault: Fault) -> str:
    """A fault in words."""
    who = f"{fault.function} (call {fault.call}, attempt {fault.attempt})" if fault.call else "the scenario"
    when = f"after operation {fault.after} of {who}" if fault.after else f"as {who} begins"
    what = {
        KILL: "its instance is killed",
        MACHINE: "the machine that it runs on is lost",
        RESTART: "the control plane is killed, and comes back",
        DELAY: f"what it does next comes {fault.seconds:g} s later",
        CLOCK: f"the wall clock jumps by {fault.seconds:+g} s",
    }
    return f"{when}, {what[fault.kind]}"
