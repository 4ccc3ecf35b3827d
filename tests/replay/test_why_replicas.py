"""Which instance a call went to, and why it got a copy, can be asked about."""

from __future__ import annotations

from nubes.functions import events as e
from nubes.functions.controller import Functions
from nubes.functions.spec import FunctionSpec
from nubes.replay.why import explain


def test_balancing_and_copies_can_be_asked_about() -> None:
    spec = FunctionSpec(
        name="a/f", min_instances=3, concurrency=2, balancing="least-loaded", idempotent=True,
        hedging="tail-at-scale(delay=1s)",
    )  # fmt: skip
    log = [(0.0, e.PolicySet("cold-start", "fresh")), (0.0, e.Deployed("a", 1, (spec,)))]
    log += [(1.0, e.InstanceReady(id)) for id in (1, 2, 3)]
    log += [(2.0, e.Submitted(1, "a/f")), (2.1, e.Submitted(2, "a/f")), (3.0, e.TimerFired(("hedge", 1)))]
    controller = Functions()
    sent = [
        (c.calls[0], c.instance) for at, event in log for c in controller.handle(event, at) if type(c) is e.Dispatch
    ]
    log += [(4.0, e.Finished(call, id, True, 1.0)) for call, id in sent]
    found = explain(log, [1, 2])
    choices = [d for d in found[2].decisions if d.question == "choose"]
    assert [(d.at, d.choice.id) for d in choices] == [(2.1, dict(sent[1:2])[2])]
    assert choices[0].again() == choices[0].choice
    assert {d.question for d in found[1].decisions} >= {"choose", "delay_s"}
    assert any("got a copy" in step.role for step in found[1].steps)
