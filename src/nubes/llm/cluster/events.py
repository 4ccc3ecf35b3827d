"""What a fleet is told, and what it wants done. Ids are of requests, numbers of engines."""

from __future__ import annotations

import msgspec

from nubes.llm.cluster.member import Report, Role
from nubes.llm.cluster.seams import Ask


class Event(msgspec.Struct, frozen=True):
    pass


class Asked(Event, frozen=True):
    """A request comes."""

    ask: Ask


class Cancelled(Event, frozen=True):
    """Nobody wants it any more."""

    id: int


class Ended(Event, frozen=True):
    """It has its last token, or its engine gave it up."""

    id: int
    number: int


class Joined(Event, frozen=True):
    """An engine is ready."""

    number: int
    report: Report
    role: Role = "both"


class Failed(Event, frozen=True):
    """An engine that was to start did not. Whoever starts it tries on."""


class Lost(Event, frozen=True):
    """An engine is gone, and all it held. `known`: how many tokens each of its requests has, for those that go on."""

    number: int
    known: dict[int, int]


class Reported(Event, frozen=True):
    number: int
    report: Report


class Ticked(Event, frozen=True):
    """Time for migration and scaling."""


class Prefilled(Event, frozen=True):
    """An engine that only computes prompts has done one: the sequence is stopped there, with one token."""

    id: int
    number: int
    blocks: int
    known: int


# -- answers to the commands of a handover ----------------------------------------------------------------------------


class Answer(Event, frozen=True):
    """`turn` is that of the command it answers: one that comes too late is known by it."""

    id: int
    turn: int


class Filled(Answer, frozen=True):
    """To `Look`: blocks that are full, and tokens it knows; -1: it does not run there any more."""

    blocks: int
    known: int = 0


class Reserved(Answer, frozen=True):
    ok: bool


class Copied(Answer, frozen=True):
    pass


class Departed(Answer, frozen=True):
    """To `Depart`: it is stopped, holds `blocks` and knows `known` tokens; -1: it does not run there any more."""

    blocks: int
    known: int


class Landed(Answer, frozen=True):
    pass


class Warmed(Answer, frozen=True):
    """To `Warm`: the target has KV of `tokens` tokens; -1: it could not."""

    tokens: int


# -- commands ---------------------------------------------------------------------------------------------------------


class Command(msgspec.Struct, frozen=True):
    id: int


class Dispatch(Command, frozen=True):
    """The request, with the tokens it has by now, goes to an engine's queue."""

    number: int


class Cancel(Command, frozen=True):
    number: int


class Refuse(Command, frozen=True):
    """The request ends with an error."""

    why: str


class Start(Command, frozen=True):
    """An engine is wanted. `id` counts them."""

    role: Role = "both"


class Stop(Command, frozen=True):
    """Nothing is left on the engine, and nothing will come. `id` is its number."""


class Part(Command, frozen=True):
    """A part of a handover; its answer has the same `turn`."""

    turn: int


class Look(Part, frozen=True):
    number: int


class Reserve(Part, frozen=True):
    number: int
    blocks: int  # more than before


class Copy(Part, frozen=True):
    """Blocks `first` to `end` of the sequence, to those reserved for it."""

    source: int
    target: int
    first: int
    end: int


class Depart(Part, frozen=True):
    number: int


class Stay(Part, frozen=True):
    number: int


class Release(Part, frozen=True):
    number: int


class Land(Part, frozen=True):
    """It is complete: it decodes on there."""

    source: int
    target: int


class Unreserve(Part, frozen=True):
    """It does not come: neither are blocks kept for it, nor is anything computed ahead."""

    number: int


class Warm(Part, frozen=True):
    """The target computes what the source knows by now, and keeps the KV."""

    source: int
    target: int
