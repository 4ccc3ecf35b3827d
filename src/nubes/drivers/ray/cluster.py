"""nubes on a Ray cluster: a machine for each of Ray's nodes, as long as Ray says that it is alive."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from math import inf
from pathlib import Path
from typing import Any

import msgspec

from nubes.drivers.local.control_plane import ControlPlane
from nubes.drivers.local.token import token_of
from nubes.drivers.ray.host import Host
from nubes.drivers.ray.objects import PlaneObjects
from nubes.drivers.remote.messages import About
from nubes.functions import events as e
from nubes.kernel.errors import Unavailable, UsageError

LOOK_S = 0.5  # how often Ray is asked which nodes there are
FIRST_S = 60.0  # how long the first machine may take


class Node(msgspec.Struct, frozen=True):
    """A node as Ray describes it."""

    id: str
    name: str  # the part of its id that people get to see
    address: str
    cpu: float
    memory_bytes: int
    draining: bool
    goes_at: float = 0.0  # when it goes if it drains, as seconds since the epoch; 0: when it is drained


class Cluster:
    """Connects to the Ray at `address`, or starts one on this machine, and keeps an agent on every node."""

    def __init__(self, address: str = "") -> None:
        try:
            import ray
        except ImportError:
            raise UsageError("Ray is not installed.", "Run `pip install 'nubes[ray]'`.") from None
        self._ray: Any = ray
        self._address = address
        self._agents: dict[str, Any] = {}  # actors, by the names of nodes
        self._draining: set[str] = set()
        self._watching: asyncio.Task[None] | None = None
        self._plane: ControlPlane
        self._own = False  # whether Ray was started here

    # -- life ----------------------------------------------------------------------------------------------------

    def control_plane(self, folder: Path, policies: dict[str, str], cpu: float = 0, memory_bytes: int = 0,
                      database: str = "", objects: str = "", agents: str = "") -> ControlPlane:  # fmt: skip
        """A control plane whose machines are Ray's nodes; `cpu` and `memory_bytes` are for a Ray that is started."""
        self._connect(cpu, memory_bytes)
        where = agents or f"{self._ray.util.get_node_ip_address()}:0"
        return ControlPlane(
            folder, policies, database=database, objects=objects, agents=where, here=False,
            carrier=PlaneObjects(self._agents),
        )  # fmt: skip

    def _connect(self, cpu: float, memory_bytes: int) -> None:
        ray = self._ray
        if ray.is_initialized():
            return
        about: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "namespace": "nubes"}
        try:
            if self._address:
                ray.init(address=self._address, **about)
                return
            self._own = True
            ray.init(
                address="local",
                num_cpus=int(cpu) or None,
                _memory=memory_bytes or None,
                include_dashboard=False,
                **about,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = f"at {self._address}" if self._address else "on this machine"
            raise Unavailable(
                f"Ray {where} cannot be used: {error}", "Check --address; `ray status` says more."
            ) from None

    async def start(self, plane: ControlPlane) -> Cluster:
        """Serves beside `plane`. Raises `Unavailable` if no machine joins it in time."""
        self._plane = plane
        loop = asyncio.get_running_loop()
        await self._look()
        end = loop.time() + FIRST_S
        while not plane.controller.machines:
            if loop.time() > end:
                raise Unavailable("No node of the Ray cluster joined.", "`ray status` and Ray's logs say more.")
            await asyncio.sleep(0.05)
        self._watching = loop.create_task(self._watch())
        return self

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
        await asyncio.get_running_loop().run_in_executor(None, self._end)

    def _end(self) -> None:
        for agent in self._agents.values():
            self._ray.kill(agent)
        if self._own:
            self._ray.shutdown()

    # -- membership ----------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            await self._look()

    async def _look(self) -> None:
        """Agents for nodes that came; machines are given up as Ray loses nodes, and drain as it drains them."""
        nodes = await asyncio.get_running_loop().run_in_executor(None, self._nodes)
        members = self._plane.agents
        assert members is not None
        for name in [name for name in self._agents if name not in nodes]:
            del self._agents[name]
            member = members.named(name)
            if member is not None:
                members.lost(member.machine, "Ray lost the node")
        for node in nodes.values():
            if node.name not in self._agents and not node.draining:
                self._agents[node.name] = self._host(node)
            member = members.named(node.name)
            if member is not None and node.draining and node.name not in self._draining:
                self._draining.add(node.name)
                within_s = max(0.0, node.goes_at - time.time()) if node.goes_at else inf
                self._plane.feed(e.MachineDraining(member.machine, within_s))

    def _nodes(self) -> dict[str, Node]:
        """The nodes that are alive, by name."""
        from ray._private.state import state

        draining = state.get_draining_nodes()
        found = {}
        for node in self._ray.nodes():
            resources = node["Resources"]
            if node["Alive"] and resources.get("CPU", 0) > 0:
                id = node["NodeID"]
                memory_bytes = int(resources.get("memory", 1 << 30))
                goes_at = draining.get(id, 0) / 1000
                found[id[:12]] = Node(
                    id, id[:12], node["NodeManagerAddress"], resources["CPU"], memory_bytes, id in draining, goes_at
                )
        return found

    def _host(self, node: Node) -> Any:
        """An agent on a node, which holds all of its CPU as far as Ray is concerned; it comes back if it dies."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        plane = self._plane
        assert plane.listener is not None
        folder = Path(tempfile.gettempdir()) / f"nubes-agent-{os.getuid()}-{plane.log_id}-{node.name}"
        about = About(0, node.name, node.cpu, node.memory_bytes, node.address)
        host = plane.address.rpartition(":")[0]
        actor = self._ray.remote(Host).options(
            num_cpus=node.cpu, max_restarts=-1, max_concurrency=16,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
        )  # fmt: skip
        return actor.remote(str(folder), (host, plane.listener.port), token_of(plane.folder), about)
