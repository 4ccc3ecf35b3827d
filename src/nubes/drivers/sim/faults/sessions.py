"""The control plane's side of a simulated client: the real session on a simulated connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nubes.drivers.local import wire
from nubes.drivers.local.sessions import Session
from nubes.drivers.sim.faults.network import Peer
from nubes.functions import events as e

if TYPE_CHECKING:
    from nubes.drivers.sim.faults.network import Endpoint
    from nubes.drivers.sim.faults.world import World


WORDS = {wire.ACCEPTED: "accepted", wire.RESULT: "result", wire.PENDING: "pending", wire.ANSWER: "deployed"}


class SimSession(Session):
    """Tells the oracle all that it tells the client. Of what clients may ask for, it knows `deploy` alone."""

    def __init__(self, world: World, end: Endpoint, owner: int) -> None:
        self.world = world
        self.plane: Any = world.plane
        self.remote = False
        self.owner = owner
        self.pid = owner
        self.plane.clients[self.pid] += 2  # never comes to nothing: there is no shared memory to clean
        self.calls = set()
        self.watched = set()
        self.apps = set()
        self.tasks = {}
        self.at_end = []
        self.unless_read = self._take_back = self.follows = None
        self.peer: Any = Peer(world.loop, end, self._frame, self._gone)

    def _frame(self, frame: list[Any]) -> None:
        if frame[0] == wire.ASK:
            self._deploy(frame[1])
        else:
            if frame[0] == wire.CANCEL:
                self.world.oracle.cancelled.add(frame[1])
            super()._frame(frame)

    def _deploy(self, number: int) -> None:
        plane = self.plane
        if plane.journal.full:
            return
        version = plane.controller.apps.get("a", (0, (), False))[0] + 1
        plane.feed(e.Deployed("a", version, self.world.new_functions()))
        plane.journal.when_safe(lambda: self._deployed(number, version), lambda _: None)

    def _deployed(self, number: int, version: int) -> None:
        self.world.oracle.told_deployed(version)
        self._send(wire.pack(wire.ANSWER, number, "", version))

    def _send(self, frame: bytes, take_back: Any = None) -> None:
        told = wire.unbody(frame[4:])
        if told[0] == wire.ACCEPTED:
            self.world.oracle.told_accepted(told[2])
        elif told[0] == wire.RESULT:
            self.world.oracle.told_answer(*told[1:5])
        self.world.note(f"session {self.owner} tells {WORDS.get(told[0], told[0])}", told[1:], frame)
        super()._send(frame, take_back)
