"""Fairness between users: shares of tokens while there is more than enough, and no advantage for newcomers."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from nubes.llm.scheduling.scheduler import Scheduler
from nubes.llm.scheduling.sequence import Sequence


class Line:
    """One request at a time is served, so that the order of admission is the order of the queue."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(64, batching="sarathi(max_seqs=1)", ordering="fair", retention="none")
        self.count = 0
        self.now = 0.0

    def ask(self, user: str, prompt: int = 16, limit: int = 1) -> None:
        self.count += 1
        self.scheduler.arrive(Sequence(self.count, prompt, limit, arrived_s=self.now, user=user), self.now)

    def serve(self) -> str:
        """Whose request came next, after it was answered."""
        step = self.scheduler.compose(self.now)
        assert step is not None
        (chunk,) = step.chunks
        self.now += 1.0
        (started,) = self.scheduler.complete(step, self.now)
        self.scheduler.finish(started, self.now)
        return chunk.sequence.user


def test_one_request_goes_before_another_users_flood() -> None:
    line = Line()
    for _ in range(10):
        line.ask("flood")
    line.ask("one")
    assert [line.serve() for _ in range(3)] == ["flood", "one", "flood"]


def test_a_newcomer_does_not_go_before_those_who_were_served_long_before() -> None:
    line = Line()
    for _ in range(50):
        line.ask("old")
        assert line.serve() == "old"
    for _ in range(8):
        line.ask("old")
        line.ask("new")
    served = [line.serve() for _ in range(8)]
    assert Counter(served) == {"old": 4, "new": 4}


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 200)), min_size=30, max_size=60))
def test_users_that_always_wait_get_the_same_share_of_tokens(asked: list[tuple[str, int]]) -> None:
    line = Line()
    left = Counter(user for user, _ in asked)
    prompts: dict[str, list[int]] = {user: [] for user in "abc"}
    for user, prompt in asked:
        line.ask(user, prompt)
        prompts[user].append(prompt)
    got: Counter[str] = Counter()
    while all(left[user] for user in "abc"):
        user = line.serve()
        got[user] += prompts[user].pop(0) + 2
        left[user] -= 1
        assert max(got.values()) - min(got[u] for u in "abc") <= 2 * 202
