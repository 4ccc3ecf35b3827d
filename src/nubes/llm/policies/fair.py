"""Fairness between users: whoever asks for much waits behind whoever asks for little."""

from __future__ import annotations

from nubes.kernel.policy import policy
from nubes.llm.scheduling.sequence import Sequence
from nubes.llm.seams import Ordering


@policy("fair")
class Fair(Ordering):
    """Start-time fair queueing over users: every user gets the same share of tokens while there is more than enough.

    A request starts, in virtual time, when its user's last one ended there, but not before the present, which is the
    start of the request admitted last. It costs its prompt and `output_weight` for each token it may generate. A
    flood of one user's requests is thus spread over the future, and another user's single one goes before it.
    """

    def __init__(self, output_weight: float = 2.0) -> None:
        self.output_weight = output_weight
        self.now = 0.0  # virtual
        self.ends: dict[str, float] = {}  # user -> when the last of their requests ends, virtually

    def rank(self, sequence: Sequence, now: float) -> tuple[float, ...]:
        start = max(self.now, self.ends.get(sequence.user, 0.0))
        self.ends[sequence.user] = start + sequence.prompt + self.output_weight * sequence.limit
        return (sequence.priority, start)

    def admitted(self, sequence: Sequence, now: float) -> None:
        self.now = max(self.now, sequence.rank[1])
        if len(self.ends) > 10_000:  # those whose requests have all begun need not be remembered
            self.ends = {user: end for user, end in self.ends.items() if end > self.now}
