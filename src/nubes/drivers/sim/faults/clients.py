"""Clients that submit calls, ask for answers, cancel, hang up, and try again what they do not know to be accepted."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING, Any

from nubes.drivers.local import wire
from nubes.drivers.sim.faults.network import Peer

if TYPE_CHECKING:
    from nubes.drivers.sim.faults.network import Endpoint
    from nubes.drivers.sim.faults.world import World

SHARED_KEYS = ("k0", "k1", "k2")  # that several clients use for the same work


class Work:
    """A durable call as its client knows it."""

    __slots__ = ("answer", "call", "function", "kept", "key", "route", "watched")

    def __init__(self, function: str, key: str, route: list[str]) -> None:
        self.function = function
        self.route = route  # a function that takes the result on, if any
        self.key = key
        self.call = 0  # its newest attempt, 0 if there is none under way
        self.kept = 0  # the id under which it was accepted
        self.watched = False
        self.answer: tuple[str, str, bytes] | None = None


class Client:
    """One program. It remembers what it was told, whatever becomes of its connections."""

    def __init__(self, world: World, number: int, r: random.Random) -> None:
        self.world = world
        self.number = number
        self.r = r
        self.end: Endpoint | None = None
        self.works: list[Work] = []
        self.plain: set[int] = set()  # calls that wait for their answers on this connection
        self.finishing = False  # begins nothing new
        self._ids = number * 1_000_000
        self._asks = 0

    def done(self) -> bool:
        """Whether all that was accepted is answered, and nothing is left to be tried again."""
        return not self.plain and all(work.answer is not None for work in self.works)

    # -- connection ----------------------------------------------------------------------------------------------

    def _connected(self) -> bool:
        if self.end is not None and self.end.closed:
            self._lost(self.end)
        if self.end is None:
            self.end = self.world.accept(self)
            if self.end is not None:
                Peer(None, self.end, self._received, partial(self._lost, self.end))
        return self.end is not None

    def _lost(self, end: Endpoint) -> None:
        if end is not self.end:
            return  # it has another by now
        self.end = None
        self.plain.clear()
        for work in self.works:
            work.watched = False
            work.call = 0
        self.works = [work for work in self.works if work.kept or work.key]  # of the others nothing can be known

    def _send(self, *frame: object) -> None:
        assert self.end is not None
        self.end.send(wire.pack(*frame))

    # -- what it does --------------------------------------------------------------------------------------------

    def think(self) -> None:
        """Does one thing, and comes again after a while."""
        think_s = max(1.0, self.world.plan.think_s) if self.finishing else self.world.plan.think_s
        self.world.timeline.after(self.r.expovariate(1.0) * think_s + 1e-3, self.think)
        if not self._connected():
            return
        if self.finishing:
            self._finish()
            return
        r = self.r
        dice = r.random()
        open_ = [work for work in self.works if work.kept]
        impatient = r.random() < 0.3  # it does not wait to hear that a call with a key was accepted
        again = [work for work in self.works if not work.kept and (work.key if impatient else not work.call)]
        if again and dice < 0.5:
            self._submit(r.choice(again))
        elif dice < 0.65:
            for _ in range(r.choice([1, 1, 1, 3])):
                self._new()
        elif dice < 0.85 and open_:
            self._fetch(r.choice(open_), r.random() < 0.7)
        elif dice < 0.91 and (open_ or self.plain):
            calls = [work.kept for work in open_] + sorted(self.plain)
            self._send(wire.CANCEL, r.choice(calls), r.random() < 0.5)
        elif dice < 0.94:
            self._asks += 1
            self._send(wire.ASK, self._asks)
        elif dice < 0.96:
            assert self.end is not None
            self.end.close()
            self._lost(self.end)

    def _finish(self) -> None:
        for work in self.works:
            if work.answer is None:
                if work.kept and not work.watched:
                    self._fetch(work, True)
                elif not work.kept and not work.call:
                    self._submit(work)

    def ask_again(self) -> None:
        """Wants every answer once more: it must be the same."""
        for work in self.works:
            work.answer = None
            work.watched = False

    def _new(self) -> None:
        r = self.r
        function = r.choice(sorted(self.world.specs))
        others = [name for name in sorted(self.world.specs) if name != function]
        route = [r.choice(others)] if others and r.random() < 0.1 else []
        if r.random() < 0.35:
            self._ids += 1
            self.plain.add(self._ids)
            key = r.choice(SHARED_KEYS) if r.random() < self.world.plan.shared_keys else ""
            self._send(wire.CALL, self._ids, function, "", "", False, key, route, b"Pinput of %d" % self._ids)
            return
        key = r.choice(["", f"c{self._ids}"])
        if r.random() < self.world.plan.shared_keys:
            key = r.choice(SHARED_KEYS)
        work = Work(function, key, route)
        self.works.append(work)
        self._submit(work)

    def _submit(self, work: Work) -> None:
        self._ids += 1
        work.call = self._ids
        data = b"Pinput of %d" % self._ids
        self._send(wire.CALL, self._ids, work.function, "", "", True, work.key, work.route, data)

    def _fetch(self, work: Work, wait: bool) -> None:
        work.watched |= wait
        self._send(wire.FETCH, work.kept, wait)

    # -- what it is told -----------------------------------------------------------------------------------------

    def _received(self, frame: list[Any]) -> None:
        kind, *rest = frame
        if kind == wire.ACCEPTED:
            call, kept = rest
            for work in self.works:
                if work.call == call:
                    work.call, work.kept = 0, kept
        elif kind == wire.RESULT:
            self._result(rest[0], (rest[1], rest[2], rest[3]))

    def _result(self, call: int, answer: tuple[str, str, bytes]) -> None:
        self.plain.discard(call)
        for work in list(self.works):
            if work.kept == call:
                work.answer = answer
                if answer[0] == "CANCELLED" and call not in self.world.oracle.cancelled:
                    self.world.oracle.say(f"call {call} was cancelled, and nobody had asked for that")
            elif work.call == call:  # refused
                work.call = 0
                if not work.key:
                    self.works.remove(work)
