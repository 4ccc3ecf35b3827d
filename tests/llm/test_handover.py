"""Handovers, stage by stage: what is asked for, and that every way out leaves nothing behind."""

from __future__ import annotations

import pytest

from nubes.llm.cluster import events as e
from nubes.llm.cluster.handover import Handover


def test_a_live_migration_copies_what_is_full_and_then_what_came() -> None:
    h = Handover(1, 0, 1, "live", last_blocks=2, turn=9)
    assert h.begin() == [e.Look(1, 9, 0)]
    assert h.on(e.Filled(1, 9, 20)) == [e.Reserve(1, 9, 1, 20)]
    assert h.on(e.Reserved(1, 9, True)) == [e.Copy(1, 9, 0, 1, 0, 20)]
    assert h.on(e.Copied(1, 9)) == [e.Look(1, 9, 0)]
    assert h.on(e.Filled(1, 9, 21)) == [e.Depart(1, 9, 0)]
    assert h.on(e.Departed(1, 9, 22, 350)) == [e.Reserve(1, 9, 1, 2)]
    assert h.on(e.Reserved(1, 9, True)) == [e.Copy(1, 9, 0, 1, 20, 22)]
    assert h.on(e.Copied(1, 9)) == [e.Land(1, 9, 0, 1)]
    assert h.on(e.Landed(1, 9)) == [e.Release(1, 9, 0)]
    assert h.outcome == "landed"


def test_it_gives_up_after_so_many_stages() -> None:
    h = Handover(1, 0, 1, "live", last_blocks=0, stages=2, turn=1)
    h.begin()
    for filled in (10, 20):
        h.on(e.Filled(1, 1, filled))
        h.on(e.Reserved(1, 1, True))
        h.on(e.Copied(1, 1))
    assert h.on(e.Filled(1, 1, 30)) == [e.Unreserve(1, 1, 1)]
    assert h.outcome == "aborted"


def test_tokens_go_until_few_are_missing() -> None:
    h = Handover(1, 0, 1, "tokens", gap=20, turn=1)
    assert h.begin() == [e.Warm(1, 1, 0, 1)]
    assert h.on(e.Warmed(1, 1, 500)) == [e.Look(1, 1, 0)]
    assert h.on(e.Filled(1, 1, 32, 540)) == [e.Warm(1, 1, 0, 1)]
    assert h.on(e.Warmed(1, 1, 540)) == [e.Look(1, 1, 0)]
    assert h.on(e.Filled(1, 1, 34, 550)) == [e.Depart(1, 1, 0)]
    assert h.on(e.Departed(1, 1, 35, 551)) == [e.Release(1, 1, 0), e.Dispatch(1, 1)]
    assert h.outcome == "redispatched"


ANSWERS: list[e.Answer] = [
    e.Filled(1, 1, 20), e.Reserved(1, 1, True), e.Copied(1, 1), e.Filled(1, 1, 21), e.Departed(1, 1, 22, 350),
    e.Reserved(1, 1, True), e.Copied(1, 1),
]  # fmt: skip


@pytest.mark.parametrize("after", range(len(ANSWERS) + 1))
@pytest.mark.parametrize("lost", ["nobody", "source", "target"])
def test_an_abort_at_any_moment_undoes_what_was_done(after: int, lost: str) -> None:
    """`after` so many answers: what was reserved is given back, and who was stopped goes on."""
    h = Handover(1, 0, 1, "live", turn=1)
    sent = h.begin()
    for answer in ANSWERS[:after]:
        sent += h.on(answer)
    undone = h.abort(source=lost != "source", target=lost != "target")
    kinds = {type(command) for command in sent}
    assert (e.Unreserve(1, 1, 1) in undone) == (e.Reserve in kinds and lost != "target")
    assert (e.Stay(1, 1, 0) in undone) == (e.Depart in kinds and lost != "source")
    assert len(undone) <= 2
    assert h.on(ANSWERS[min(after, len(ANSWERS) - 1)]) == [], "what comes late changes nothing"


def test_who_is_gone_is_not_told_to_stay() -> None:
    h = Handover(1, 0, 1, "copy", turn=1)
    assert h.begin() == [e.Depart(1, 1, 0)]
    assert h.on(e.Departed(1, 1, -1, 0)) == []
    assert h.outcome == "aborted"


def test_a_prompt_that_is_done_waits_for_room() -> None:
    h = Handover(1, 0, 1, turn=1, fetched=5)
    assert h.begin() == [e.Reserve(1, 1, 1, 5)]
    assert h.on(e.Reserved(1, 1, False)) == []
    assert h.waits
    assert h.again() == [e.Reserve(1, 1, 1, 5)]
    assert h.on(e.Reserved(1, 1, True)) == [e.Copy(1, 1, 0, 1, 0, 5)]
    assert h.on(e.Copied(1, 1)) == [e.Land(1, 1, 0, 1)]


def test_answers_to_another_handover_are_ignored() -> None:
    h = Handover(1, 0, 1, "live", turn=2)
    h.begin()
    assert h.on(e.Filled(1, 1, 20)) == []
