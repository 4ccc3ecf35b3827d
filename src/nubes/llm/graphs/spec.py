"""A graph of calls as plain data: what is sent to /v1/graphs, and what the service plans with."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from nubes.kernel.errors import UsageError
from nubes.llm.graphs.template import Input, Output, Piece, parse
from nubes.llm.spec import Criterion, Sampling

LATENCY: Criterion = "latency"
THROUGHPUT: Criterion = "throughput"
TTFT: Criterion = "ttft"
TPOT: Criterion = "tpot"
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)

CALLS = 1024  # in one graph


class Transform(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is done to a value on its way. `argument`: the path of a JSON field, a regular expression, or nothing."""

    kind: Literal["json", "regex", "strip"]
    argument: str = ""


def json_field(path: str) -> Transform:
    """The field of the first JSON object in a text: "name", "items.0.name"."""
    return Transform("json", path)


def regex(pattern: str) -> Transform:
    """The first match of a regular expression: its first group if it has one."""
    return Transform("regex", pattern)


strip = Transform("strip")  # without white space at both ends


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One use of a template. `inputs` and `outputs`: placeholder -> variable.

    `transforms`: by placeholder; of an input before it is filled in, of an output before it is the variable's value.
    """

    template: str
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}  # a placeholder that is not there names its variable itself
    transforms: dict[str, tuple[Transform, ...]] = {}
    sampling: Sampling = Sampling()


class Graph(msgspec.Struct, frozen=True, kw_only=True):
    """Calls, the values that are there from the beginning, and the variables somebody waits for."""

    calls: tuple[Call, ...]
    get: dict[str, Criterion]
    values: dict[str, str] = {}


class Chain(msgspec.Struct, frozen=True):
    """A completion: the pieces of a call up to one of its outputs, and the variables that must be there before.

    Earlier outputs of the same call are among them: what was written is part of what comes next.
    """

    number: int
    call: int
    pieces: tuple[Piece, ...]
    inputs: tuple[str, ...]
    output: str


class Plan(msgspec.Struct, frozen=True):
    """What the state machine needs of a graph: no text."""

    chains: tuple[Chain, ...]
    get: dict[str, Criterion]
    values: frozenset[str] = frozenset()


def variable(call: Call, piece: Input | Output) -> str:
    """Which variable a placeholder stands for."""
    return (call.inputs if isinstance(piece, Input) else call.outputs).get(piece.name, piece.name)


def split(calls: tuple[Call, ...]) -> tuple[Chain, ...]:
    """Calls, split after every output. Raises `UsageError` for templates that are none, or names nobody knows."""
    chains: list[Chain] = []
    for at, call in enumerate(calls):
        pieces = parse(call.template)
        places = {piece.name for piece in pieces if isinstance(piece, Input | Output)}
        strange = next(
            (name for of in (call.inputs, call.outputs, call.transforms) for name in of if name not in places), None
        )
        if strange is not None:
            raise UsageError(f"Call {at} has no placeholder {strange!r}.", f"It has: {', '.join(sorted(places))}.")
        inputs: dict[str, None] = {}
        for n, piece in enumerate(pieces):
            if isinstance(piece, Input):
                inputs[variable(call, piece)] = None
            elif isinstance(piece, Output):
                chains.append(Chain(len(chains), at, pieces[:n], tuple(inputs), variable(call, piece)))
                inputs[variable(call, piece)] = None
    return tuple(chains)


def plan(graph: Graph) -> Plan:
    """Raises `UsageError` if a variable is made twice or never, or from itself."""
    if not graph.calls or not graph.get:
        raise UsageError("The graph has no calls, or nobody waits for anything.", "Give at least one of each.")
    if len(graph.calls) > CALLS:
        raise UsageError(f"The graph has {len(graph.calls)} calls; {CALLS} may come at once.", "Send it in parts.")
    chains = split(graph.calls)
    made: dict[str, Chain] = {}
    for chain in chains:
        if chain.output in made or chain.output in graph.values:
            raise UsageError(f"Two things give {chain.output!r} its value.", "Give each output a variable of its own.")
        made[chain.output] = chain
    known = {*made, *graph.values}
    for name in (*graph.get, *(name for chain in chains for name in chain.inputs)):
        if name not in known:
            raise UsageError(f"Nothing gives {name!r} a value.", "Make it the output of a call, or give its value.")
    _acyclic(chains, made)
    return Plan(chains, dict(graph.get), frozenset(graph.values))


def _acyclic(chains: tuple[Chain, ...], made: dict[str, Chain]) -> None:
    missing = {chain.number: sum(name in made for name in chain.inputs) for chain in chains}
    users: dict[str, list[int]] = {}
    for chain in chains:
        for name in chain.inputs:
            users.setdefault(name, []).append(chain.number)
    ready = [number for number, count in missing.items() if not count]
    for number in ready:  # grows
        for user in users.get(chains[number].output, ()):
            missing[user] -= 1
            if not missing[user]:
                ready.append(user)
    if len(ready) < len(chains):
        stuck = next(chain.output for chain in chains if missing[chain.number])
        raise UsageError(f"{stuck!r} is made from itself.", "A value can only depend on those made before it.")
