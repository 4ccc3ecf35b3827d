"""The control plane on this machine: log, controller, processes and clients on one event loop."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections import Counter
from pathlib import Path

from nubes.drivers.local.environments import Environments
from nubes.drivers.local.journal import Journal
from nubes.drivers.local.limits import Limits
from nubes.drivers.local.plane import Plane
from nubes.drivers.local.processes import Processes
from nubes.drivers.local.secrets import Secrets
from nubes.drivers.local.shared_folder import SharedFolder
from nubes.drivers.local.state import open_state
from nubes.drivers.local.stores import Stores
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
        database: str = "", objects: str = "",
    ) -> None:  # fmt: skip
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
        self.cpu = cpu or float(len(os.sched_getaffinity(0)))
        self.memory_bytes = memory_bytes or int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 0.8)
        self.socket = str(folder / "socket")
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
        self.begin(self.processes, self.policies, e.MachineReady(self.cpu, self.memory_bytes))

    def close(self) -> None:
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

    def python(self, environment: str) -> str:
        """The interpreter of an environment."""
        if not environment:
            return sys.executable
        path = self.environments.python(environment)
        if path is None:
            raise Unavailable(f"Environment {environment} has not been built.", "Deploy the app again.")
        return str(path)

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
