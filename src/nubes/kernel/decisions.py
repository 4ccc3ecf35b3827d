"""Decisions, written down: the view a policy had, what it chose, what lost.

The log holds events only. To ask about a decision, the log is folded again with its policies wrapped in `Watched`,
which stores each decision's view before it is taken. Feeding a stored view back gives the same decision, bit for bit.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import msgspec

from nubes.kernel.policy import Policy, decisions_of


class Decision(msgspec.Struct):
    """One decision. `before` is the policy and its arguments as they were, pickled together."""

    at: float
    seam: str
    policy: str
    question: str
    before: bytes
    choice: Any
    scores: list[tuple[str, float]]

    def view(self) -> tuple[Any, ...]:
        """The arguments the policy saw."""
        args: tuple[Any, ...] = pickle.loads(self.before)[1]
        return args

    def again(self) -> Any:
        """Asks the policy once more, from the stored view alone."""
        policy, args = pickle.loads(self.before)
        return getattr(policy, self.question)(*args)


class Watched:
    """Stands in for a policy and hands each of its decisions to `sink`. Everything else passes through."""

    def __init__(self, policy: Policy, sink: Callable[[Decision], None]) -> None:
        self._policy = policy
        self._sink = sink
        self._decisions = frozenset(decisions_of(type(policy)))

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._policy, name)
        return self._watch(name) if name in self._decisions else value

    def _watch(self, question: str) -> Callable[..., Any]:
        def ask(*args: Any) -> Any:
            before = pickle.dumps((self._policy, tuple(freeze(arg) for arg in args)))
            scores = getattr(self._policy, "scores", None)
            losers = scores(question, *args) if scores is not None else []
            choice = getattr(self._policy, question)(*args)
            at = float(args[-1]) if args and isinstance(args[-1], (int, float)) else 0.0
            self._sink(Decision(at, self._policy.seam, self._policy.text, question, before, choice, losers))
            return choice

        return ask


def freeze(view: Any) -> Any:
    """A copy of a view that later events cannot change; views that know how to copy themselves say so with `freeze`."""
    if hasattr(view, "freeze"):
        return view.freeze()
    if isinstance(view, dict):
        return {key: freeze(value) for key, value in view.items()}
    if isinstance(view, (list, tuple)):
        return type(view)(freeze(item) for item in view)
    return view
