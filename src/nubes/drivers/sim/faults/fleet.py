"""How a simulated control plane has machines: its own, where processes are a model, and those with real agents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nubes.drivers.local import payload, wire
from nubes.drivers.remote import messages
from nubes.drivers.sim.faults.machines import Elsewhere
from nubes.drivers.sim.faults.network import Peer
from nubes.drivers.sim.faults.processes import Processes
from nubes.drivers.sim.faults.watched import WatchedAgents
from nubes.functions.spec import FunctionSpec
from nubes.kernel.errors import UsageError
from nubes.kernel.rng import rng

if TYPE_CHECKING:
    from nubes.drivers.sim.faults.machines import Machine
    from nubes.drivers.sim.faults.network import Endpoint
    from nubes.drivers.sim.faults.world import World


def hands(world: World) -> WatchedAgents:
    """Those of a control plane that begins."""
    plane, here, life = world.plane, world.machines[0], world.life.number
    specs, nothing = plane.controller.specs, payload.Segments("")
    local = Processes(world, here, world.loop, None, specs, plane.feed, plane.instance_frame, lambda: life)

    def around(function: str, environment: str) -> messages.Surroundings | None:
        spec = specs.get(function) if function else FunctionSpec(name="", environment=environment)
        return messages.Surroundings(spec, {}, {}, "") if spec is not None else None

    loop: Any = world.loop
    agents = WatchedAgents(
        loop, plane.feed, plane.instance_frame, around, lambda: False, nothing, nothing, local,
        plane.goes_on, plane.inputs,
        Elsewhere(world, rng(world.seed, "carrier", life)), connect=Peer, files=lambda _: {}, incarnation=life,
    )  # fmt: skip
    agents.oracle = world.oracle
    return agents


def visited(world: World, machine: Machine) -> Endpoint | None:
    """An agent connects, if there is somebody. It says who it is, and is let in or told why not."""
    if not world.up:
        return None
    near, far = world.network.connect(machine.name, machine.agent, world.life)
    agents = world.agents

    def greeted(frame: list[Any]) -> None:
        try:
            agents.join(frame[1], far)
        except UsageError as error:
            far.send(wire.pack(messages.REFUSED, error.message, error.hint))
            far.close()

    Peer(world.loop, far, greeted, lambda: None)
    return near
