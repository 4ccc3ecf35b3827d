"""Connections that delay, stall, and break with what is under way. Within one, what arrives, arrives in order.

Between connections there is no order, and whoever connects again may send again what was lost: so the other side sees
things late, twice, or never, as over TCP.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from nubes.drivers.local.wire import Splitter
from nubes.drivers.sim.faults.loop import Lifetime, Timeline

PIECES = 0.1  # how likely what is sent arrives in two


class Endpoint:
    """One end of a connection. `received` gets what arrives, `lost` is called once when the other side hung up, or it
    broke. What is sent after the end goes nowhere."""

    def __init__(self, network: Network, way: str, life: Lifetime | None) -> None:
        self.received: Callable[[bytes], None] = lambda _: None
        self.lost: Callable[[], None] = lambda: None
        self.closed = False
        self.way = way  # from here
        self.life = life  # of the process that holds it
        self.other: Endpoint
        self._network = network
        self._arrives = 0.0  # when the newest that is on its way does

    def send(self, data: bytes) -> None:
        if not self.closed:
            self._network.carry(self, data)

    def close(self) -> None:
        """Hangs up: what was sent still arrives, then the other side learns of it."""
        if not self.closed:
            self.closed = True
            self._network.end(self)


class Network:
    """Carries bytes between ends. `delay_s` draws how long that takes; ways can be cut and healed by name."""

    def __init__(self, timeline: Timeline, r: random.Random, delay_s: Callable[[], float]) -> None:
        self._timeline = timeline
        self._r = r
        self._delay_s = delay_s
        self.cut_until: dict[str, float] = {}
        self.open: dict[Endpoint, None] = {}  # one end of each connection

    def connect(self, name: str, near: Lifetime | None, far: Lifetime | None) -> tuple[Endpoint, Endpoint]:
        """Two ends of a new connection between two processes, over the ways from and to `name`."""
        a, b = Endpoint(self, f"from {name}", near), Endpoint(self, f"to {name}", far)
        a.other, b.other = b, a
        self.open[a] = None
        return a, b

    def _arrival(self, end: Endpoint) -> float:
        """Not before what was sent earlier, nor before a cut is healed."""
        at = max(self._timeline.now + self._delay_s(), end._arrives, self.cut_until.get(end.way, 0.0))
        end._arrives = at
        return at

    def carry(self, end: Endpoint, data: bytes) -> None:
        if self._r.random() < PIECES:
            cut = self._r.randrange(1, len(data))
            self._timeline.at(self._arrival(end), self._arrive, end.other, data[:cut], life=end.other.life)
            data = data[cut:]
        self._timeline.at(self._arrival(end), self._arrive, end.other, data, life=end.other.life)

    def _arrive(self, end: Endpoint, data: bytes) -> None:
        if not end.closed:
            end.received(data)

    def end(self, end: Endpoint) -> None:
        self._timeline.at(self._arrival(end), self._over, end.other, life=end.other.life)

    def _over(self, end: Endpoint) -> None:
        self.open.pop(end, None)
        self.open.pop(end.other, None)
        if not end.closed:
            end.closed = True
            end.lost()

    def snap(self, end: Endpoint) -> None:
        """The connection breaks: what is under way is lost; each side learns of it at a time of its own."""
        for side in (end, end.other):
            if not side.closed:
                side.closed = True
                self._timeline.at(self._timeline.now + self._delay_s(), side.lost, life=side.life)
        self.open.pop(end, None)
        self.open.pop(end.other, None)

    def died(self, life: Lifetime) -> None:
        """A process is gone. Of each of its connections, what it sent still arrives, or not."""
        for end in self._of(life):
            if self._r.random() < 0.5:
                end.close()
            else:
                self.snap(end)

    def vanished(self, life: Lifetime) -> None:
        """It is gone with its machine, and nobody is told."""
        for end in self._of(life):
            end.closed = True
            self.open.pop(end, None)
            self.open.pop(end.other, None)

    def _of(self, life: Lifetime) -> list[Endpoint]:
        return [end for a in self.open for end in (a, a.other) if end.life is life]


class Peer:
    """What `nubes.drivers.local.peer.Peer` is, over one end of a simulated connection."""

    unread = False
    backlog_bytes = 0

    def __init__(
        self, loop: Any, end: Endpoint, on_frame: Callable[[list[Any]], None], on_close: Callable[[], None]
    ) -> None:  # fmt: skip
        self._end = end
        self._on_frame = on_frame
        self._on_close = on_close
        self._splitter = Splitter()
        self.closed = False
        end.received = self._readable
        end.lost = self.close

    def send(self, data: bytes) -> None:
        self._end.send(data)

    def _readable(self, data: bytes) -> None:
        for frame in self._splitter.feed(data):
            self._on_frame(frame)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._end.close()
            self._on_close()
