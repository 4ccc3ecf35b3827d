"""Ends of lines, lives of agents and their work, played by hand: no sockets, no processes, and a clock of the test's."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from nubes.drivers.local import payload, wire
from nubes.drivers.local.inputs import Inputs
from nubes.drivers.remote import agent as agent_module
from nubes.drivers.remote import messages
from nubes.drivers.remote.agents import Agents
from nubes.drivers.remote.carrying import Inline
from nubes.drivers.remote.life import Life
from nubes.drivers.remote.line import Line
from nubes.drivers.remote.work import Work
from nubes.drivers.sim.faults.loop import Lifetime, Timeline, VirtualLoop
from nubes.functions import events as e
from nubes.functions.spec import Code, FunctionSpec

SPEC = FunctionSpec(name="a/f", code=Code(digest="1"))
AROUND = messages.Surroundings(SPEC, {}, {}, "")
START = messages.Do(e.StartInstance(1, "a/f", "", 0), AROUND)
GROW = messages.Do(e.GrowNode(3, 0, "", (), "a/f"), AROUND)
CALL = messages.Run(e.Dispatch(1, (7,), 0), False, [b"Pinput"])
DONE = [wire.DONE, 7, True, 0.1, b"Poutput", "", False]


class Clocked:
    """A loop in virtual time; what it gives to threads takes half a second."""

    def __init__(self) -> None:
        self.timeline = Timeline()
        self.loop: Any = VirtualLoop(self.timeline, Lifetime(1), random.Random(0), lambda: 0.5)

    def run(self, seconds: float) -> None:
        over: list[bool] = []
        self.timeline.after(seconds, over.append, True)
        while not over:
            action, args = self.timeline.next() or (over.append, (True,))
            action(*args)


class Place:
    """A site that notes what its hands are told."""

    segments = payload.Segments("")

    def __init__(self, has: bool = True) -> None:
        self.told: list[Any] = []
        self.hands: Any = self
        self._has = has

    def __getattr__(self, name: str) -> Any:
        return lambda *about: self.told.append(name)

    def has(self, spec: FunctionSpec) -> bool:
        return self._has

    def unpack(self, spec: FunctionSpec, files: dict[str, bytes]) -> Code:
        return spec.code

    def lacks(self, around: messages.Surroundings) -> str:
        return ""


class Slow(Inline):
    """A carrier that makes everybody wait."""

    def waits(self, data: bytes) -> bool:
        return bool(data)


class Way:
    """A connection, from one end. Until it is delivered, what was sent is on its way."""

    def __init__(self) -> None:
        self.sent = b""
        self.open = True
        self.on_frame: Any = None  # of this end

    def send(self, data: bytes) -> None:
        self.sent += data if self.open else b""

    def close(self) -> None:
        self.open = False

    def take(self) -> list[list[Any]]:
        data, self.sent = self.sent, b""
        return wire.Splitter().feed(data)


class Pair:
    """An agent's end, a control plane's, and one clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.said: list[bytes] = []
        self.ways = [Way(), Way()]
        self.agent, self.plane = (self._end(n) for n in (0, 1))
        self.deliver()

    def _end(self, n: int) -> Line:
        def make(on_frame: Any, _: Any) -> Way:
            self.ways[n].on_frame = on_frame
            return self.ways[n]

        line = Line(n + 1, lambda: self.now, self.said.append, lambda: None)
        line.connect(make, 0.0)
        return line

    def deliver(self) -> None:
        while any(way.sent for way in self.ways):
            for way, other in zip(self.ways, reversed(self.ways), strict=True):
                for frame in way.take():
                    other.on_frame(frame)


# -- leases ------------------------------------------------------------------------------------------------------------


def test_who_is_not_heard_does_not_count_on_what_it_hears() -> None:
    pair = Pair()
    pair.now = 3.0
    pair.agent.beat()
    pair.deliver()
    assert (pair.agent.known_s, pair.plane.heard_s) == (3.0, 3.0)
    pair.ways[0].open = False
    pair.now = 5.0
    pair.agent.beat()
    pair.plane.send(b"an order")
    pair.deliver()
    assert pair.said == [b"an order"]
    assert (pair.agent.heard_s, pair.agent.known_s, pair.plane.heard_s) == (5.0, 3.0, 3.0)


def test_what_lay_unread_renews_no_lease() -> None:
    pair = Pair()
    pair.now = 1.0
    pair.agent.beat()
    for frame in pair.ways[0].take():
        pair.ways[1].on_frame(frame)
    pair.now = 9.0  # the agent stood still, and now reads the answer
    pair.deliver()
    assert pair.agent.known_s == 1.0


def test_a_lease_counts_from_when_the_connection_was_asked_for() -> None:
    c, place, ended = Clocked(), Place(), list[float]()
    life = Life(c.loop, 5, Inline(), lambda _: place, lambda whole: ended.append(c.loop.time()))
    c.run(20.0)
    assert not ended, "nobody has let it in yet"
    since_s = c.loop.time() - 2.0
    life.connected(lambda *_: Way(), since_s)
    c.run(20.0)
    assert messages.LEASE_S < ended[0] - since_s < messages.LOST_S
    assert place.told == ["close"]


# -- leaving -----------------------------------------------------------------------------------------------------------


def test_an_agent_that_is_asked_to_leave_between_two_lives_begins_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lives = []

    class Brief(agent_module.Agent):
        async def _live(self) -> bool:
            lives.append(1)
            return False

    async def play() -> None:
        agent = Brief(tmp_path, ("127.0.0.1", 1), "", messages.About(0, "m", 1.0, 1 << 30))
        running = asyncio.create_task(agent.run())
        while not lives:
            await asyncio.sleep(0)
        agent.leave()
        await asyncio.wait_for(running, 5)

    monkeypatch.setattr(agent_module, "AGAIN_S", 0.01)
    asyncio.run(play())
    assert lives == [1]


def test_a_machine_that_may_go_lets_those_that_were_stopped_end_in_order() -> None:
    c, left = Clocked(), list[bool]()
    work = Work(c.loop, Inline(), lambda _: None, lambda: left.append(True), lambda _: Place())
    work.ordered(START)
    work.ordered(messages.Do(e.StopInstance(1, "its machine is to go")))
    work.ordered(messages.Bye())
    assert not left
    work.report(e.InstanceLost(1, "it was stopped"))
    assert left


# -- order -------------------------------------------------------------------------------------------------------------


def test_what_is_ended_while_it_waits_for_files_does_not_begin() -> None:
    c, place, news = Clocked(), Place(has=False), list[Any]()
    work = Work(c.loop, Inline(), news.append, lambda: None, lambda _: place)
    for order in (START, GROW):
        work.ordered(order)
    work.ordered(messages.Do(e.StopInstance(1, "no need")))
    work.ordered(messages.Do(e.PruneNode(3, "no need")))
    place.told.clear()
    work.ordered(messages.Files("a/f", {}))
    assert place.told == []
    assert [type(one.event) for one in news if isinstance(one, messages.Happened)] == [e.InstanceLost, e.NodeLost]


def test_a_call_is_interrupted_after_it_was_given() -> None:
    c, place = Clocked(), Place()
    work = Work(c.loop, Slow(), lambda _: None, lambda: None, lambda _: place)
    work.ordered(START)
    work.ordered(CALL)
    work.ordered(messages.Do(e.Interrupt(1, 7)))
    c.run(1.0)
    assert place.told == ["start", "dispatch", "interrupt"]


def test_an_answer_that_takes_long_to_come_is_heard_before_the_end_of_its_instance() -> None:
    c, happened = Clocked(), list[Any]()
    agents = Agents(
        c.loop, happened.append, lambda _, frame: happened.append(frame[0]), lambda *_: AROUND, lambda: False,
        Place.segments, Place.segments, None, lambda _: False, Inputs(lambda _: None), Slow(), connect=lambda *_: Way(), incarnation=1,
    )  # fmt: skip
    agents.join(messages.encode(messages.About(5, "m", 1.0, 1 << 30)), None)
    agents.start(e.StartInstance(1, "a/f", "", 0, machine=1))
    agents._said(1, messages.encode(messages.Said(1, DONE, False)))
    agents._said(1, messages.encode(messages.Happened(e.InstanceLost(1, "it was for one call"))))
    c.run(1.0)
    assert happened[1:] == [wire.DONE, e.InstanceLost(1, "it was for one call")]
