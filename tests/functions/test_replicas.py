"""Functions that name who balances or hedges their calls: which instance gets them, copies, shadows, and their ends."""

from __future__ import annotations

import pickle

import pytest

from nubes.functions import events as e
from nubes.functions.changes import verify_switch
from nubes.functions.deployments import verify
from nubes.functions.spec import Batching, Retries
from nubes.kernel.errors import NubesError

from .desk import GIB, Desk, spec

HEDGE = "tail-at-scale(delay=1s,copies=1)"


def hedged(**options: object) -> Desk:
    """A desk with two instances of one function that is hedged after a second, 2 calls at once each."""
    chosen = {"hedging": HEDGE, "idempotent": True, "concurrency": 2, "min_instances": 2, "balancing": "least-loaded"}
    d = Desk(spec(**{**chosen, **options}))
    d.ready()
    return d


def places(d: Desk, call: int) -> set[int]:
    return {id for id, i in d.c.instances.items() if call in i.calls}


def late(d: Desk, call: int, after: float = 1.0) -> int:
    """The call gets its copy; returns the instance."""
    d.timer("hedge", call, after=after)
    (copy,) = d.of(e.Dispatch)
    assert copy.copy
    assert copy.calls == (call,)
    return copy.instance


def test_by_default_the_last_to_come_free_takes_all_it_can() -> None:
    d = hedged(hedging="", balancing="")
    assert d.c.functions["a/f"].replicas is None
    d.call("f"), d.call("f")
    assert places(d, 1) == places(d, 2)
    assert not d.of(e.SetTimer, [c for c in d.all if getattr(c, "key", ("",))[0] == "hedge"])


def test_calls_are_balanced() -> None:
    d = hedged(hedging="")
    for _ in range(4):
        d.call("f")
    assert sorted(i.load for i in d.c.instances.values()) == [2, 2]
    assert places(d, 1) != places(d, 2)
    d.call("f")
    assert d.status(5) == e.PENDING


def test_a_late_call_gets_a_copy_and_the_first_answer_counts() -> None:
    d = hedged()
    call = d.call("f")
    (first,) = places(d, call)
    second = late(d, call)
    assert places(d, call) == {first, second}
    d(e.Finished(call, second, True, 0.1, b"second"), 0.1)
    assert d.of(e.Interrupt) == [e.Interrupt(first, call)]
    assert d.status(call) == e.SUCCEEDED
    d(e.Finished(call, first, True, 0.1, b"first"), 0.1)  # it had begun, and went on
    assert d.status(call) == e.SUCCEEDED
    assert places(d, call) == set()


def test_a_call_that_is_answered_in_time_gets_none() -> None:
    d = hedged()
    call = d.call("f")
    d.done(call, after=0.5)
    d.timer("hedge", call, after=0.5)
    assert d.last == []


@pytest.mark.parametrize("how", ["idempotent", "route"])
def test_what_may_run_only_once_gets_no_copy(how: str) -> None:
    d = hedged(idempotent=how != "idempotent")
    call = d.call("f", route=("a/f",) if how == "route" else ())
    assert not [c for c in d.last if isinstance(c, e.SetTimer) and c.key[0] == "hedge"]
    d.timer("hedge", call, after=1.0)
    assert not d.of(e.Dispatch)


def test_an_error_waits_for_the_other_copy() -> None:
    d = hedged()
    call = d.call("f")
    (first,) = places(d, call)
    second = late(d, call)
    d(e.Finished(call, first, False, 0.1))
    assert d.status(call) == e.RUNNING
    assert places(d, call) == {second}
    d(e.Finished(call, second, False, 0.1))
    assert d.status(call) == e.FAILED


def test_the_loss_of_one_instance_costs_nothing() -> None:
    d = hedged(retries=Retries(0))
    call = d.call("f")
    (first,) = places(d, call)
    second = late(d, call)
    d(e.InstanceLost(first, "killed"))
    assert d.status(call) == e.RUNNING
    d(e.InstanceLost(second, "killed"))
    assert d.status(call) == e.FAILED


def test_each_copy_has_its_time() -> None:
    d = hedged(timeout_s=5.0)
    call = d.call("f")
    (first,) = places(d, call)
    second = late(d, call)
    d.timer("instance", first, after=4.0)
    assert [c.instance for c in d.of(e.StopInstance)] == [first]
    assert places(d, call) == {second}
    d.timer("instance", second, after=1.0)
    assert d.status(call) == e.TIMED_OUT


def test_who_cancels_cancels_all() -> None:
    d = hedged()
    call = d.call("f")
    late(d, call)
    d(e.Cancelled(call))
    assert d.status(call) == e.CANCELLED
    assert len(d.of(e.StopInstance)) == 2


def test_a_durable_call_takes_its_input_along() -> None:
    d = hedged()
    call = d.call("f", keep=True, input=b"in")
    d.timer("hedge", call, after=1.0)
    assert [c.inputs for c in d.of(e.Dispatch)] == [(b"in",)]
    d(e.Restarted())
    assert d.status(call) == e.PENDING
    d.ready()
    assert d.status(call) == e.RUNNING


def test_calls_that_wait_go_before_copies() -> None:
    d = hedged(concurrency=1, max_instances=2)
    one, _, _ = d.call("f"), d.call("f"), d.call("f")
    d.timer("hedge", one, after=1.0)
    assert not d.of(e.Dispatch)
    (again,) = d.of(e.SetTimer)  # it looks again
    d.done(2)  # the third call gets this one
    d.done(3)
    d.timer("hedge", one, after=again.at - d.now)
    assert len(d.of(e.Dispatch)) == 1


def test_a_copy_goes_to_another_machine() -> None:
    d = Desk(
        spec(hedging=HEDGE, idempotent=True, min_instances=4, cpu=0.5), cpu=1.0, memory_bytes=GIB, machines=2
    )  # fmt: skip
    d.ready()
    call = d.call("f")
    (first,) = places(d, call)
    second = late(d, call)
    assert d.c.instances[first].machine is not d.c.instances[second].machine


def test_a_batch_of_one_gets_a_copy_too() -> None:
    d = hedged(concurrency=1, batching=Batching(2, 0.0))
    call = d.call("f")
    d.timer("hedge", call, after=1.0)
    (copy,) = d.of(e.Dispatch)
    assert (copy.batch, copy.copy) == (True, True)


def test_a_replica_on_probation_gets_shadows_that_nobody_waits_for() -> None:
    d = hedged(hedging="", balancing="tail-at-scale(samples=2)", min_instances=3)
    a, b, slow = d.c.instances
    balancing = d.c.functions["a/f"].replicas.balancing  # type: ignore[union-attr]
    for _ in range(30):
        if balancing.out:
            break
        call = d.call("f")
        (at,) = places(d, call)
        d(e.Finished(call, at, True, 0.1), 5.0 if at == slow else 0.1)
    assert set(balancing.out) == {slow}
    call = d.call("f", after=0.2)
    assert slow in places(d, call)
    (chosen,) = places(d, call) - {slow}
    assert chosen in (a, b)
    d(e.Finished(call, chosen, True, 0.1), 0.1)
    assert d.status(call) == e.SUCCEEDED
    assert not d.of(e.Interrupt)  # its latency is wanted
    assert slow in places(d, call)
    d(e.Finished(call, slow, True, 0.1))
    for _ in range(2):
        call = d.call("f", after=0.2)
        for at in places(d, call):
            d(e.Finished(call, at, True, 0.1), 0.05)
    assert not balancing.out


def test_one_function_alone_is_switched_and_stays_so() -> None:
    d = Desk(spec("f", idempotent=True, min_instances=3, concurrency=2), spec("g", idempotent=True))
    d.ready()

    def has(app: str) -> tuple[str, str]:
        replicas = d.c.functions[app].replicas
        made = (replicas.balancing, replicas.hedging) if replicas else (None, None)
        return tuple(one.name if one else "" for one in made)  # type: ignore[return-value]

    d(e.PolicySet("balancing", "least-loaded", "a/f"))
    d(e.PolicySet("hedging", HEDGE, "a/f"))
    assert (has("a/f"), has("a/g")) == (("least-loaded", "tail-at-scale"), ("", ""))
    first, second = d.call("f"), d.call("f")
    assert not places(d, first) & places(d, second)
    late(d, second)
    d(e.PolicySet("balancing", "random"))
    assert (has("a/f")[0], has("a/g")[0]) == ("least-loaded", "random")
    d.c = pickle.loads(pickle.dumps(d.c, 5))
    d(e.Restarted())
    d.deploy(spec("f", idempotent=True), spec("g", idempotent=True))
    assert has("a/f") == ("least-loaded", "tail-at-scale")
    d(e.Removed("a"))
    d.deploy(spec("f", idempotent=True))
    assert has("a/f") == ("random", "")


def test_what_one_function_cannot_have_is_said() -> None:
    d = hedged(hedging="", balancing="")
    d.deploy(spec("f"), spec("once"))
    verify_switch(d.c, "balancing", "prequal", "a/once")
    for seam, policy, function, said in (
        ("queueing", "edf", "a/f", "One function alone can be given its keep-alive, balancing, hedging"),
        ("balancing", "prequal", "a/onc", "Did you mean a/once"),
        ("hedging", HEDGE, "a/once", "Say idempotent=True if it may"),
    ):
        with pytest.raises(NubesError) as caught:
            verify_switch(d.c, seam, policy, function)
        assert said in caught.value.hint


def test_policies_can_be_switched_while_calls_run() -> None:
    d = hedged(hedging="", balancing="", min_instances=3)
    d.call("f"), d.call("f")
    d(e.PolicySet("balancing", "least-loaded"))
    third = d.call("f")
    assert len(places(d, third) & places(d, 1)) == 0
    d(e.PolicySet("hedging", HEDGE))
    fourth = d.call("f")
    late(d, fourth)
    d(e.PolicySet("balancing", "latest"))
    d(e.PolicySet("hedging", "none"))
    assert d.c.functions["a/f"].replicas is None
    for call in (1, 2, third, fourth):
        d.done(call)
        assert d.status(call) == e.SUCCEEDED


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"hedging": "tail-at-scale"}, "may not run twice"),
        ({"hedging": "tail-at-scale(tied=true)", "idempotent": True}, "one queue"),
        ({"hedging": "tail-at-scale", "idempotent": True, "generator": True}, "would mix"),
        ({"balancing": "prequel"}, "prequal"),
    ],
)
def test_what_cannot_be_is_told(options: dict[str, object], says: str) -> None:
    with pytest.raises(NubesError) as told:
        verify(spec(**options))
    assert says in str(told.value)
