"""The link: every message once and in order over connections that break, and a word when the other side is a new one."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nubes.kernel.link import ACK_EVERY, Link, LinkBroken


class Wire:
    """Two links and what is on its way between them, over one connection at a time."""

    def __init__(self, left: Link, right: Link) -> None:
        self.ends = [left, right]
        self.got: list[list[bytes]] = [[], []]
        self.lost = [0, 0]
        self.way: list[list[bytes]] = [[], []]  # to the end of that number

    def connect(self) -> None:
        self.cut()
        for side in (0, 1):
            self.way[1 - side] += self.ends[side].connected()

    def cut(self) -> None:
        self.way = [[], []]
        for end in self.ends:
            end.disconnected()

    def send(self, side: int, message: bytes) -> None:
        self.way[1 - side] += self.ends[side].send(message)

    def step(self, side: int, twice: bool = False) -> None:
        if self.way[side]:
            frame = self.way[side].pop(0)
            for _ in range(2 if twice else 1):
                messages, answer, lost = self.ends[side].receive(frame)
                self.got[side] += messages
                self.lost[side] += lost
                self.way[1 - side] += answer

    def settle(self) -> None:
        while self.way[0] or self.way[1]:
            self.step(0), self.step(1)


def test_a_message_is_given_once() -> None:
    wire = Wire(Link(1), Link(2))
    wire.send(0, b"before")  # kept until there is a connection
    wire.connect()
    wire.settle()
    wire.send(0, b"after")
    wire.settle()
    assert wire.got[1] == [b"before", b"after"]
    wire.way[0] += wire.ends[1].beat()
    wire.settle()
    assert wire.ends[0].unacknowledged == 0
    assert wire.lost == [0, 0]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_breaks_each_message_comes_once_and_in_order(seed: int) -> None:
    draw = random.Random(seed)
    wire = Wire(Link(1), Link(2))
    sent: list[list[bytes]] = [[], []]
    for n in range(300):
        what, side = draw.random(), draw.randrange(2)
        if what < 0.4:
            message = b"%d" % n
            sent[side].append(message)
            wire.send(side, message)
        elif what < 0.9:
            wire.step(side, twice=draw.random() < 0.1)
        elif what < 0.95:
            wire.way[1 - side] += wire.ends[side].beat()
        else:
            wire.connect()
    wire.connect()
    wire.settle()
    assert wire.got == [sent[1], sent[0]]
    assert wire.lost == [0, 0]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_a_new_incarnation_is_noticed_and_gets_nothing_of_the_old_ones(seed: int) -> None:
    draw = random.Random(seed)
    wire = Wire(Link(1), Link(2))
    wire.connect()
    for n in range(draw.randrange(20)):
        wire.send(n % 2, b"old")
        wire.step(draw.randrange(2))
    met = wire.ends[1].peer
    wire.ends[0] = Link(3)  # the left side was killed and came back
    wire.got = [[], []]
    wire.connect()
    wire.settle()
    wire.send(0, b"new")
    wire.send(1, b"news")
    wire.settle()
    assert wire.lost[1] == (met != 0)
    assert wire.got[1] == [b"new"]
    assert wire.got[0][-1] == b"news"
    if met:
        assert wire.got[0] == [b"news"]


def test_it_acknowledges_without_being_asked_when_much_came() -> None:
    wire = Wire(Link(1), Link(2))
    wire.connect()
    wire.settle()
    for _ in range(ACK_EVERY):
        wire.send(0, b"m")
    wire.settle()
    assert wire.ends[0].unacknowledged == 0


@pytest.mark.parametrize("frame", [b"", b"nonsense", b"\x93\x01\x05\x00\xc4\x01x", b"\x92\x02\x09"])
def test_what_makes_no_sense_breaks_the_connection(frame: bytes) -> None:
    wire = Wire(Link(1), Link(2))
    wire.connect()
    with pytest.raises(LinkBroken):
        Link(9).receive(b"\x92\x02\x00")  # no hello yet
    wire.settle()
    with pytest.raises(LinkBroken):
        wire.ends[0].receive(frame)
