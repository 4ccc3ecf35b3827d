"""The auditor on evidence written by hand: what is in order, and each way in which it is not."""

from __future__ import annotations

import pytest

from nubes.chaos import schedule
from nubes.chaos.audit import RULES, audit
from nubes.chaos.evidence import (
    ACCEPTED,
    DONE,
    NOT_YET,
    REFUSED,
    UNKNOWN,
    Ask,
    Broken,
    Evidence,
    Logged,
    Run,
    Told,
    answer,
)
from nubes.chaos.schedule import FAULTS
from nubes.functions import events as e
from nubes.functions.spec import FunctionSpec
from nubes.kernel.errors import UsageError

WORK = "chaos/work"


class Story:
    """Evidence, one operation after the other."""

    def __init__(self) -> None:
        self.evidence = Evidence()
        self.op = 0

    def ask(self, kind: str, *told: str, call: int = 0, token: str = "", key: str = "", accepted: int = 0) -> Story:
        self.op += 1
        self.evidence.asks.append(Ask("c", self.op, self.op, kind, call, WORK if call else "", token, key))
        if told:
            status, said = (*told, "")[:2]
            self.evidence.tolds.append(Told("c", self.op, self.op + 0.5, status, said, accepted or call))
        return self

    def log(self, call: int, *answers: tuple[str, str], keep: bool = True, key: str = "", losses: int = 0) -> Story:
        self.evidence.log[call] = Logged(call, WORK, keep, key, list(answers), losses, pending=not answers)
        return self

    def run(self, token: str, times: int = 1) -> Story:
        self.evidence.runs += [Run(token, 1, 1.0 + n, 1.5 + n) for n in range(times)]
        return self

    def kinds(self) -> list[str]:
        return [one.kind for one in audit(self.evidence)]


def spawned(call: int = 7, token: str = "t") -> Story:
    """A call that was accepted, done and fetched."""
    right = ("SUCCEEDED", answer(token))
    story = Story().ask("spawn", ACCEPTED, call=call, token=token).ask("fetch", *right, call=call)
    return story.log(call, right).run(token)


def test_all_is_well() -> None:
    assert spawned().kinds() == []
    assert spawned().ask("fetch", "SUCCEEDED", answer("t"), call=7).kinds() == []


def test_an_accepted_call_is_lost() -> None:
    story = spawned()
    story.evidence.log.clear()
    assert story.kinds() == ["lost", "not-the-log"]


def test_an_answer_is_lost() -> None:
    assert set(spawned().log(7).kinds()) == {"lost", "not-the-log"}


def test_an_accepted_call_is_never_answered() -> None:
    story = Story().ask("spawn", ACCEPTED, call=7, token="t").ask("fetch", NOT_YET, call=7).log(7)
    assert story.kinds() == ["lost", "unanswered"]


def test_a_call_is_answered_in_two_ways() -> None:
    story = spawned().ask("fetch", "FAILED", "lost", call=7)
    assert story.kinds() == ["two-answers", "not-the-log"]
    right = ("SUCCEEDED", answer("t"))
    assert spawned().log(7, right, ("FAILED", "lost")).kinds() == ["two-answers"]


def test_the_log_says_something_else() -> None:
    assert spawned().log(7, ("SUCCEEDED", "other")).kinds() == ["not-the-log"]


def test_a_wrong_answer_is_wrong_wherever_it_stands() -> None:
    story = Story().ask("spawn", ACCEPTED, call=7, token="t").ask("fetch", "SUCCEEDED", "wrong", call=7)
    assert story.log(7, ("SUCCEEDED", "wrong")).run("t").kinds() == ["wrong-answer"]
    story = Story().ask("remote", "FAILED", "FileNotFoundError: seg-1", call=7, token="t")
    assert story.log(7, ("FAILED", ""), keep=False).run("t").kinds() == ["wrong-answer"]
    story = Story().ask("remote", "FAILED", "lost", call=7, token="t").log(7, ("FAILED", "lost"), keep=False)
    assert story.kinds() == [], "its instance was killed"


def test_an_answer_without_an_execution() -> None:
    story = spawned()
    story.evidence.runs = [Run("t", 1, 1.0)]  # it began, and was lost
    assert story.kinds() == ["not-run"]


def test_executions_need_a_reason() -> None:
    right = ("SUCCEEDED", answer("t"))
    assert spawned().run("t").kinds() == ["run-too-often"]
    assert spawned().run("t").log(7, right, losses=1).kinds() == []
    story = spawned().run("t")
    story.evidence.log[7].restarts = 1
    assert story.kinds() == []
    plain = Story().ask("remote", *right, call=8, token="t").log(8, ("SUCCEEDED", ""), keep=False, losses=1).run("t", 2)
    assert plain.kinds() == ["run-too-often"], "what is not durable runs once"


def test_one_key_is_one_call() -> None:
    right = ("SUCCEEDED", answer("t"))
    same = Story().ask("spawn", UNKNOWN, call=1, token="t", key="k")
    same.ask("spawn", ACCEPTED, call=2, token="t", key="k", accepted=1).ask("fetch", *right, call=1)
    assert same.log(1, right, key="k").log(2, key="k").run("t").kinds() == []
    two = spawned(1).ask("spawn", ACCEPTED, call=2, token="t", key="k").ask("fetch", *right, call=2)
    two.evidence.asks[0] = Ask("c", 1, 1.0, "spawn", 1, WORK, "t", "k")
    assert two.log(2, right).kinds() == ["two-for-one-key"]
    assert two.run("t").kinds() == ["run-too-often", "two-for-one-key"]


def test_what_was_refused_is_not_done() -> None:
    story = Story().ask("spawn", REFUSED, call=7, token="t")
    assert story.log(7, ("CANCELLED", "")).kinds() == []
    assert story.log(7, ("SUCCEEDED", answer("t"))).run("t").kinds() == ["refused-but-done"]


def test_what_was_refused_may_have_begun() -> None:
    right = ("SUCCEEDED", answer("t"))
    story = Story().ask("spawn", REFUSED, call=6, token="t", key="k").ask("spawn", ACCEPTED, call=7, token="t", key="k")
    story.ask("fetch", *right, call=7).log(6, ("CANCELLED", ""), key="k").log(7, right, key="k")
    assert story.run("t", 2).kinds() == []
    assert story.run("t").kinds() == ["run-too-often"]


def test_nobody_asked() -> None:
    assert spawned().log(9, ("SUCCEEDED", "x")).kinds() == ["not-asked"]
    assert spawned().run("other").kinds() == ["not-asked"]


def test_a_cancelled_call_was_cancelled_by_somebody() -> None:
    story = (
        Story().ask("spawn", ACCEPTED, call=7, token="t").ask("fetch", "CANCELLED", call=7).log(7, ("CANCELLED", ""))
    )
    assert story.kinds() == ["cancelled-unasked"]
    assert story.ask("cancel", DONE, call=7).kinds() == []


def test_only_a_crash_excuses_what_is_missing_of_calls_that_are_not_durable() -> None:
    def told(*faults: Broken) -> list[str]:
        story = Story().ask("remote", "SUCCEEDED", answer("t"), call=8, token="t").run("t")
        story.evidence.faults = list(faults)
        return story.kinds()

    assert told() == ["not-the-log"]
    assert told(Broken("kill-plane", 2.0, 2.0)) == []
    assert told(Broken("kill-plane", 9.0, 9.0)) == ["not-the-log"], "long before the crash"
    assert told(Broken("kill-plane", 9.0, 9.0), Broken("full-disk", 1.0, 9.0)) == [], "nothing could be written"
    assert told(Broken("kill-plane", 0.5, 0.9)) == ["not-the-log"], "it was asked after the crash"
    story = Story().ask("spawn", ACCEPTED, call=7, token="t")
    story.evidence.faults = [Broken("kill-plane", 2.0, 2.0)]
    assert story.kinds() == ["lost", "unanswered"], "what was accepted has no excuse"


def test_items_of_a_queue() -> None:
    story = Story().ask("put", DONE, token="a").ask("put", DONE, token="b").ask("put", UNKNOWN, token="c")
    story.evidence.queue_left = ["b"]
    assert story.kinds() == ["queue-lost"]
    story.ask("take", DONE, "a")
    assert story.kinds() == []
    assert story.ask("take", DONE, "b").kinds() == ["queue-twice"]
    story.evidence.queue_left = ["x"]
    assert story.kinds() == ["queue-unasked"]


def test_an_item_may_go_with_a_taker_that_was_told_nothing() -> None:
    story = Story().ask("put", DONE, token="a").ask("put", DONE, token="b").ask("take", UNKNOWN)
    assert story.kinds() == ["queue-lost"]
    assert story.ask("take").kinds() == [], "one that was killed may have had the other"


def test_a_dict_shows_what_was_set_last() -> None:
    story = Story().ask("set", DONE, token="1", key="k").ask("look", DONE, "1", key="k")
    assert story.kinds() == ["dict-wrong"], "it is gone at the end"
    story.evidence.dict_left = {"k": "1"}
    assert story.kinds() == []
    story.ask("set", UNKNOWN, token="2", key="k").ask("set", REFUSED, token="3", key="k")
    assert story.kinds() == []
    assert story.ask("look", DONE, "2", key="k").kinds() == ["dict-wrong"], "seen once, it stays"
    story.evidence.dict_left = {"k": "2"}
    assert story.kinds() == []
    assert story.ask("look", DONE, "3", key="k").kinds() == ["dict-wrong", "dict-wrong"]


def test_what_is_left_over_is_told() -> None:
    story = spawned()
    story.evidence.left_over, story.evidence.ended_alone = ["process 1"], ["agent m1"]
    assert story.kinds() == ["left-over", "ended-alone"]
    assert set(story.kinds()) <= set(RULES)


def test_a_schedule_follows_from_its_seed() -> None:
    kinds = list(FAULTS)
    one = schedule.schedule(1, 600.0, 0.5, kinds)
    assert one == schedule.schedule(1, 600.0, 0.5, kinds) != schedule.schedule(2, 600.0, 0.5, kinds)
    assert {fault.kind for fault in schedule.schedule(1, 3600.0, 1.0, kinds)} == set(kinds)
    assert all(0 < fault.at_s <= fault.at_s + fault.lasts_s < 600.0 for fault in one)
    assert schedule.schedule(1, 600.0, 0.0, kinds) == schedule.schedule(1, 600.0, 1.0, []) == []


def test_kinds_of_faults_are_chosen_by_name() -> None:
    assert schedule.chosen("kill-plane,cut", ["cut", "stall", "kill-plane"]) == ["cut", "kill-plane"]
    assert schedule.chosen("-cut", ["cut", "stall"]) == ["stall"]
    assert schedule.chosen("", ["cut", "stall"]) == ["cut", "stall"]
    with pytest.raises(UsageError, match="kill-plane"):
        schedule.chosen("kill-plain", [])


def test_the_log_is_folded_to_what_it_says_of_each_call() -> None:
    from nubes.chaos.logged import calls

    spec = FunctionSpec(name=WORK, max_instances=1, cpu=1.0)
    events = [
        e.MachineReady(4.0, 1 << 33), e.PolicySet("cold-start", "fresh"), e.Deployed("chaos", 1, (spec,)),
        e.Submitted(5, WORK, keep=True, key="k"), e.Submitted(6, WORK, owner=1), e.InstanceReady(1),
        e.InstanceLost(1, "it was killed"), e.InstanceReady(2), e.Restarted(),
    ]  # fmt: skip
    found = calls((float(n), event) for n, event in enumerate(events))
    assert (found[5].losses, found[5].restarts, found[5].pending, found[5].answers) == (1, 1, True, [])
    assert (found[6].losses, found[6].keep, found[6].pending) == (0, False, False)
