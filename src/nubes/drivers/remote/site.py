"""The machine that an agent works on: its processes, files and memory."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from pathlib import Path

from nubes.drivers.local import payload
from nubes.drivers.local.environments import Environments
from nubes.drivers.local.limits import Limits
from nubes.drivers.local.processes import Processes
from nubes.drivers.remote import code
from nubes.drivers.remote.messages import Surroundings
from nubes.drivers.remote.work import Work
from nubes.functions.spec import Code, FunctionSpec
from nubes.kernel.errors import Unavailable


class LocalSite:
    """This machine. What is to last lies in `folder`, what processes share in `shared`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, folder: Path, shared: Path, work: Work) -> None:
        for name in ("objects", "output", "environments", "code"):
            (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder = folder
        self._around = work.around
        self._environments = Environments(folder / "environments")
        self.segments = payload.Segments(str(shared), keep=False)
        self.hands = Processes(
            loop, folder, shared, work.specs, work.report, work.frame, self._python, self._settings,
            Limits(groups_of(folder)), lambda: work.prime, str(folder / "objects"),
        )  # fmt: skip

    def close(self) -> None:
        """Ends everything at once."""
        self.hands.close()
        self._environments.close()

    def has(self, spec: FunctionSpec) -> bool:
        return code.is_here(spec.code)

    def unpack(self, spec: FunctionSpec, files: dict[str, bytes]) -> Code:
        return code.unpack(spec.code, files, self._folder / "code")

    def lacks(self, around: Surroundings) -> str:
        missing = [name for name in around.volumes.values() if not os.path.isdir(name)]
        return f"its volume {missing[0]} is not on this machine; share the folder between machines" if missing else ""

    def _python(self, environment: str) -> str:
        if not environment:
            return sys.executable
        for around in self._around.values():
            if around.spec.environment == environment and os.path.exists(around.python):
                return around.python
        path = self._environments.python(environment)
        if path is None:
            raise Unavailable(
                f"Environment {environment} is not on this machine.", "Share the data folder between machines."
            )
        return str(path)

    def _settings(self, spec: FunctionSpec) -> tuple[dict[str, str], dict[str, str]]:
        around = self._around[spec.name]
        return {**around.env, "NUBES_SOCKET": str(self._folder / "socket")}, around.volumes


def groups_of(folder: Path) -> str:
    """What an agent's control groups are called: as before a crash, so that what was left of it is found and ended."""
    return f"nubes-agent-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]}"
