"""What the simulator needs to know of functions: how long starts take, and what parents in the process tree cost.

Only drivers in virtual time read this; controllers and policies never do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nubes.functions.events import GrowNode
from nubes.functions.spec import FunctionSpec

FORK_S = 0.002  # a fork of a parked process, until the child can take a call
INTERPRETER_S = 0.02  # a fresh interpreter, before it imports anything
INTERPRETER_BYTES = 10 << 20  # what a parent with a bare interpreter holds

NodeKind = tuple[str, tuple[str, ...], str]  # environment, imports, function


@dataclass(frozen=True)
class TreeTimes:
    """Measured times of starts that share something with a parent; functions in the order of the workload's.

    `grown` maps a kind of parent to samples of (seconds to grow it, bytes it holds).
    """

    shared_s: tuple[tuple[float, ...], ...] = ()  # from a parent without the function's module
    own_s: tuple[tuple[float, ...], ...] = ()  # from a parent with the function's module loaded
    grown: Mapping[NodeKind, tuple[tuple[float, int], ...]] = field(default_factory=dict)


class Samples:
    """Measured values handed out in turn, again and again: the same number of draws gives the same values."""

    __slots__ = ("_next", "_values")

    def __init__(self, values: Sequence[float]) -> None:
        self._values = list(values)
        self._next = 0

    def __bool__(self) -> bool:
        return bool(self._values)

    def draw(self) -> float:
        value = self._values[self._next]
        self._next = (self._next + 1) % len(self._values)
        return value


class Node:
    """A parent as the simulated machine sees it."""

    __slots__ = ("function", "imports", "ready_s")

    def __init__(self, imports: frozenset[str], function: str, ready_s: float) -> None:
        self.imports = imports
        self.function = function
        self.ready_s = ready_s


class Machine:
    """Start and growth times. Measured times are used where there are any; the rest is what a parent leaves to do.

    A sample of a whole start is an interpreter, the imports in equal parts, and the function's own module as one part
    more. A parent saves the interpreter and the parts it holds; one with the function's module leaves a fork alone.
    """

    def __init__(
        self, specs: Sequence[FunctionSpec], whole_s: Sequence[Sequence[float]], tree: TreeTimes | None
    ) -> None:
        tree = tree or TreeTimes()
        none: tuple[tuple[float, ...], ...] = ((),) * len(specs)
        self.nodes: dict[int, Node] = {}
        self._specs = specs
        self._by_name = {spec.name: index for index, spec in reversed(list(enumerate(specs)))}
        self._whole = [Samples(values) for values in whole_s]
        self._shared = [Samples(values) for values in tree.shared_s or none]
        self._own = [Samples(values) for values in tree.own_s or none]
        self._grown = {kind: Samples([s for s, _ in samples]) for kind, samples in tree.grown.items()}
        self._held = {kind: max(held for _, held in samples) for kind, samples in tree.grown.items()}

    def start_s(self, function: int, node: int) -> float:
        """Seconds from the start of an instance to its readiness; `node` is what it is forked from, 0 nothing."""
        if not node or node not in self.nodes:
            return self._whole[function].draw()
        parent, spec = self.nodes[node], self._specs[function]
        own = parent.function == spec.name
        measured = self._own[function] if own else self._shared[function]
        if measured:
            return measured.draw()
        whole = self._whole[function].draw()
        return min(whole, FORK_S) if own else self._rest(whole, spec, parent.imports)

    def grow(self, command: GrowNode, now: float) -> tuple[float, float, int]:
        """A new parent: when it is ready, the seconds its growth takes once its own parent is, the bytes it holds."""
        above = self.nodes.get(command.parent)
        imports = frozenset(command.imports) | (above.imports if above else frozenset())
        begun = max(now, above.ready_s) if above else now
        kind = (command.environment, command.imports, command.function)
        if kind in self._grown:
            took, held = self._grown[kind].draw(), self._held[kind]
        elif command.function in self._by_name:
            index = self._by_name[command.function]
            spec = self._specs[index]
            whole = self._whole[index].draw()
            took = self._rest(whole, spec, above.imports) if above else whole
            held = spec.memory_bytes
        else:
            took, held = FORK_S if above else INTERPRETER_S, INTERPRETER_BYTES
        self.nodes[command.node] = Node(imports, command.function, begun + took)
        return begun + took, took, held

    def prune(self, node: int) -> None:
        self.nodes.pop(node, None)

    def _rest(self, whole: float, spec: FunctionSpec, held: frozenset[str]) -> float:
        """What a parent that holds `held`, but not the function's module, leaves to do of a whole start."""
        imports = spec.code.imports
        share = sum(name in held for name in imports) / (len(imports) + 1)
        return max(min(whole, FORK_S), (whole - INTERPRETER_S) * (1.0 - share))
