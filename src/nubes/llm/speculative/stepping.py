"""Guesses in an engine's steps: what to guess, and where the KV of guesses that held belongs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nubes.llm.runtime.slots import Move
from nubes.llm.scheduling.scheduler import Scheduler
from nubes.llm.scheduling.step import Guess, Step
from nubes.llm.spec import Delta
from nubes.llm.speculative import slots
from nubes.llm.speculative.tree import ROOT, Tree
from nubes.llm.speculative.verify import accepted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nubes.llm.engine.choice import Choice
    from nubes.llm.runtime.rows import Runtime


class Guesses:
    """What is guessed in one step of an engine: `trees` by sequence, none beyond an answer's last token."""

    def __init__(self, scheduler: Scheduler, step: Step, choices: Mapping[int, Choice]) -> None:
        self.trees: dict[int, Tree] = {}
        self._scheduler = scheduler
        self._guesses: dict[int, tuple[Guess, int]] = {}  # sequence -> its place in the step, nodes before its own
        self.moves: list[Move] = []  # of tokens, once guesses are verified
        self.paths: list[list[tuple[int, int]]] = []  # what came of it, as `ranks` tells it; empty: nothing to guess
        self._nodes = 0
        widths = slots.widths(scheduler, step)
        for sequence in scheduler.state.decoding.values() if widths else ():
            choice = choices[sequence.id]
            if choice.draft is None:
                choice.draft = scheduler.speculation.draft()
            deep = min(len(widths), sequence.limit - sequence.generated - 1)
            if deep < 1 or choice.draft is None:
                continue
            tree = choice.draft.draft(choice.text, widths[:deep])
            if tree and slots.guess(scheduler, step, sequence, len(tree)):
                self.trees[sequence.id] = tree
                self._guesses[sequence.id] = step.guesses[-1], self._nodes
                self._nodes += len(tree)
            elif not tree:
                self.paths.append([])

    def verified(self, choice: Choice, logits: NDArray[np.float32], row: int, finite: NDArray[np.bool_]) -> list[Delta]:
        """An answer's next delta, and one more for each guess that held. `row` of the logits is its last token's.

        The logits of guesses are the last ones, in the order of `trees`. Where they are not `finite` none holds.
        """
        sequence = choice.sequence
        tree = self.trees.get(sequence.id)
        if tree is None:
            return [choice.next(logits[row])]
        guess, before = self._guesses[sequence.id]
        first = len(logits) - self._nodes + before
        deltas: list[Delta] = []

        def choose(node: int) -> int | None:
            delta = choice.next(logits[row if node == ROOT else first + node])
            deltas.append(delta)
            token = choice.text[-1]
            child = tree.branches(node).get(token)
            return None if child is None or delta.finish is not None or not finite[first + child] else token

        nodes = accepted(tree, choose)
        state = self._scheduler.state
        self.moves += moves(sequence.blocks, state.block_size, sequence.context, nodes)
        slots.accept(self._scheduler.state, guess, len(nodes))
        self.paths.append(ranks(tree, nodes, choice.text[-len(deltas) :]))
        self._scheduler.speculation.verified(self.paths[-1])
        return deltas

    def settle(self, runtime: Runtime) -> None:
        """Brings the KV of the guesses that held to where it belongs. To be done before the next step."""
        runtime.slots.move(self.moves)


def ranks(tree: Tree, nodes: Sequence[int], tokens: Sequence[int]) -> list[tuple[int, int]]:
    """By depth: how many guesses stood beside each other, and the rank of the one that held, or -1.

    `nodes` held, and `tokens` were chosen: after the root and after each of them.
    """
    said: list[tuple[int, int]] = []
    for above, token in zip((ROOT, *nodes), tokens, strict=True):
        beside = list(tree.branches(above))
        if beside:
            said.append((len(beside), beside.index(token) if token in beside else -1))
    return said


def moves(blocks: Sequence[int], size: int, context: int, nodes: Sequence[int]) -> list[Move]:
    """What brings the KV of the nodes that held together. Node i was computed in slot context + i.

    Keys are stored as turned to a node's position, which is that of the slot it goes to.
    """
    return [
        (blocks[source // size], source % size, blocks[target // size], target % size)
        for target, source in enumerate((context + node for node in nodes), context)
        if source != target
    ]
