"""The control plane on this machine: log, controller, processes and clients on one event loop."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nubes.drivers.local import machine, payload, wire
from nubes.drivers.local.environments import Environments
from nubes.drivers.local.journal import Journal
from nubes.drivers.local.limits import Limits
from nubes.drivers.local.payload import Segments
from nubes.drivers.local.plane import Hands, Plane
from nubes.drivers.local.processes import Processes
from nubes.drivers.local.secrets import Secrets
from nubes.drivers.local.shared_folder import SharedFolder
from nubes.drivers.local.state import open_state
from nubes.drivers.local.stores import Stores
from nubes.drivers.local.token import token_of
from nubes.drivers.remote.agents import Agents
from nubes.drivers.remote.carrying import Carrier
from nubes.drivers.remote.listener import Listener, bind
from nubes.drivers.remote.messages import AGENT, JOINED, Surroundings
from nubes.functions import events as e
from nubes.functions.deployments import verify
from nubes.functions.spec import FunctionSpec
from nubes.kernel.errors import Unavailable, UsageError
from nubes.kernel.policy import load


class ControlPlane(Plane):
    """One data folder's control plane. `start` recovers and begins; `close` ends every process and lets go of the
    folder."""

    def __init__(
        self, folder: Path, policies: dict[str, str] | None = None, cpu: float = 0, memory_bytes: int = 0,
        database: str = "", objects: str = "", agents: str = "", here: bool = True, carrier: Carrier | None = None,
    ) -> None:  # fmt: skip
        """`agents`: HOST:PORT where other machines may join; `here`: whether this one runs instances, too."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in ("objects", "output", "volumes", "environments"):
            (folder / name).mkdir(exist_ok=True, mode=0o700)
        state = open_state(folder, database, objects)
        self.objects = state.objects
        super().__init__(Journal(state))
        self.shared_folder = SharedFolder(self.log_id, folder)
        self.shared = self.shared_folder.path
        self.environments = Environments(folder / "environments")
        self.stores = Stores(state.tables)
        self.secrets = Secrets(state.secrets)
        self.policies = policies or {}
        own_cpu, own_memory = machine.here()
        self.cpu = cpu or own_cpu
        self.memory_bytes = memory_bytes or own_memory
        self.socket = str(folder / "socket")
        self.address = agents
        self.here = here
        self.carrier = carrier
        self.durable = Segments(self.objects, durable=True)
        self.agents: Agents | None = None
        self.listener: Listener | None = None
        self.visitors: Callable[[socket.socket], Any] = lambda sock: sock.close()  # clients on other machines
        self.clients: Counter[int] = Counter()  # process -> its connections
        self.started_s = 0.0

    @property
    def log_id(self) -> str:
        return hashlib.sha256(str(self.folder.resolve()).encode()).hexdigest()[:12]

    # -- life ----------------------------------------------------------------------------------------------------

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        load()
        self.recover(loop)
        self.limits = Limits(f"nubes-{self.log_id}")
        self.processes = Processes(
            loop, self.folder, self.shared, self.controller.specs, self.feed, self.instance_frame,
            self.python, self.settings, self.limits, lambda: self.controller.tree.policy.prime, self.objects,
        )  # fmt: skip
        self.started_s = self.clock()
        hands: Hands = self.processes
        if self.address:
            prime = lambda: self.controller.tree.policy.prime  # noqa: E731
            local = self.processes if self.here else None
            segments = Segments(str(self.shared), keep=False)
            self.agents = hands = Agents(
                loop, self.feed, self.instance_frame, self.around, prime, segments, self.durable, local, self.goes_on,
                self.inputs, self.carrier,
            )  # fmt: skip
            self.listener = Listener(loop, bind(self.address), token_of(self.folder), self._welcome)
            (self.folder / "agents").write_text(f"{self.listener.port}\n")  # for those who let the system choose
        own = e.MachineReady(self.cpu, self.memory_bytes) if self.here else e.MachineLost(0, "it runs no instances")
        self.begin(hands, self.policies, own)

    def _welcome(self, kind: str, about: bytes, sock: socket.socket) -> None:
        """Somebody on another machine showed that it knows the token."""
        if kind == AGENT and self.agents is not None:
            self.agents.join(about, sock)
        else:
            sock.send(wire.pack(JOINED, 0))
            self.visitors(sock)

    def close(self) -> None:
        if self.listener is not None:
            self.listener.close()
        if self.agents is not None:
            self.agents.close()
        self.processes.close()
        self.environments.close()
        self.stores.close()
        self.secrets.close()
        self.journal.close()
        self.let_go()

    def let_go(self) -> None:
        """Gives the folder back, whether or not it was ever started."""
        self.journal.let_go()
        self.shared_folder.close()

    # -- functions -----------------------------------------------------------------------------------------------

    def deploy(self, app: str, specs: tuple[FunctionSpec, ...], ephemeral: bool) -> int:
        """Puts an app's functions in place and returns its version."""
        if self.journal.full:
            raise Unavailable(self.journal.full, "Nothing was deployed.")
        for spec in specs:
            if not spec.name.startswith(f"{app}/"):
                raise UsageError(f"Function {spec.name!r} is not of app {app!r}.")
            verify(spec)
            if spec.environment:
                self.python(spec.environment)
        version = self.controller.apps.get(app, (0, (), False))[0] + 1
        self.feed(e.Deployed(app, version, specs, ephemeral))
        return version

    def lasting(self, output: bytes) -> bytes | None:
        path = payload.segment_of(output)
        if output[:1] == b"P" or payload.is_object(path):
            return output
        if self.durable.far:
            return None  # that would take a while, and all wait
        try:
            kept = payload.landed(payload.carried(output), self.durable)
        except OSError:
            return None
        if path and kept != output:
            payload.discard(path)
        return kept if kept != output else None  # it is gone

    def another(self, output: bytes) -> bytes:
        return payload.carried(output)

    def python(self, environment: str) -> str:
        """The interpreter of an environment."""
        if not environment:
            return sys.executable
        path = self.environments.python(environment)
        if path is None:
            raise Unavailable(f"Environment {environment} has not been built.", "Deploy the app again.")
        return str(path)

    def around(self, function: str, environment: str) -> Surroundings | None:
        """What another machine needs to start a function, or a parent without one; None if it is gone."""
        spec = self.controller.specs.get(function) if function else FunctionSpec(name="", environment=environment)
        if spec is None:
            return None
        env, volumes = self.settings(spec) if function else ({}, {})
        return Surroundings(spec, env, volumes, self.python(spec.environment))

    def settings(self, spec: FunctionSpec) -> tuple[dict[str, str], dict[str, str]]:
        """What an instance of `spec` finds around it: variables with its secrets, and volumes."""
        env = {
            "NUBES_SOCKET": self.socket,
            "NUBES_APP": spec.name.partition("/")[0],
            "NUBES_FUNCTION": spec.name,
        }
        for secret in spec.secrets:
            env.update(self.secrets.values(secret))
        volumes = {}
        for where, name in spec.volumes.items():
            source = self.folder / "volumes" / name
            source.mkdir(exist_ok=True)
            volumes[where] = str(source)
        return env, volumes
