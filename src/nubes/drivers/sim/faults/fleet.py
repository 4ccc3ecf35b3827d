"""The hands of a simulated control plane: it tells machines over connections, and hears of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nubes.drivers.local import wire
from nubes.drivers.sim.faults import machines as m
from nubes.functions import events as e

if TYPE_CHECKING:
    from nubes.drivers.sim.faults.network import Endpoint
    from nubes.drivers.sim.faults.world import World


class Fleet:
    """The machines that a life of the control plane knows, by the ids it gave them. The `Hands` of its `Plane`."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ends: dict[int, Endpoint] = {}
        self.where: dict[int, int] = {}  # instance -> machine
        self.functions: dict[int, str] = {}
        self.nodes: dict[int, int] = {}
        self.lost: set[int] = set()

    # -- commands ------------------------------------------------------------------------------------------------

    def _tell(self, machine: int, *frame: Any) -> None:
        end = self.ends.get(machine)
        if end is not None:
            end.send(wire.body(*frame))

    def start(self, command: e.StartInstance) -> None:
        self.where[command.instance] = command.machine
        self.functions[command.instance] = command.function
        self._tell(command.machine, m.START, command.instance, command.function, command.node)

    def stop(self, command: e.StopInstance) -> None:
        self.world.oracle.given_up(command.instance)
        if command.instance in self.where:
            self._tell(self.where[command.instance], m.STOP, command.instance, command.kill)

    def dispatch(self, command: e.Dispatch, keep: bool, inputs: list[bytes]) -> None:
        machine = self.where[command.instance]
        self._tell(machine, m.RUN, command.instance, command.calls, inputs, command.batch)

    def interrupt(self, command: e.Interrupt) -> None:
        self.world.oracle.interrupted(command.instance, command.call)
        self._tell(self.where[command.instance], m.INTERRUPT, command.instance, command.call)

    def grow(self, command: e.GrowNode) -> None:
        self.nodes[command.node] = command.machine
        self._tell(command.machine, m.GROW, command.node, command.parent)

    def prune(self, command: e.PruneNode) -> None:
        if command.node in self.nodes:
            self._tell(self.nodes.pop(command.node), m.PRUNE, command.node)

    def drained(self, command: e.Drained) -> None:
        self.world.loop.call_soon(self.gone, command.machine, "it was to go")

    def function_of(self, instance: int) -> str:
        return self.functions.get(instance, "")

    # -- machines ------------------------------------------------------------------------------------------------

    def join(self, id: int, end: Endpoint) -> None:
        """A connection of a machine, or the way to the one that this runs on."""
        self.ends[id] = end
        end.received = lambda message: self._received(id, message)
        end.lost = lambda: self.gone(id, "its connection broke")

    def gone(self, id: int, reason: str) -> None:
        """A machine is given up, whatever it does."""
        if id and id in self.ends and id not in self.lost:
            self.lost.add(id)
            self.ends[id].close()
            for instance, machine in self.where.items():
                if machine == id:
                    self.world.oracle.given_up(instance)
            self.world.plane.feed(e.MachineLost(id, reason))

    def _received(self, machine: int, message: bytes) -> None:
        if machine in self.lost:
            return
        kind, *rest = wire.unbody(message)
        plane = self.world.plane
        if kind == m.FRAME:
            if rest[1][0] == wire.BROKEN:
                self.world.oracle.given_up(rest[0])
            plane.instance_frame(rest[0], rest[1])
        elif kind == m.EXITED:
            self.world.oracle.given_up(rest[0])
            plane.feed(e.InstanceLost(rest[0], rest[1]))
        elif kind == m.PARKED:
            plane.feed(e.NodeReady(*rest))
        elif kind == m.GONE:
            plane.feed(e.NodeLost(*rest))
