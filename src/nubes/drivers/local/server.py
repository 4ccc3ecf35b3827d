"""The process of a control plane: serves until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from nubes.drivers.local.control_plane import ControlPlane
from nubes.drivers.local.journal import complain
from nubes.drivers.local.logstore import LogStore
from nubes.drivers.local.sessions import listen
from nubes.kernel.errors import NubesError


def run(folder: Path, policies: dict[str, str], *, cpu: float = 0, memory_bytes: int = 0, database: str = "",
        objects: str = "", watch_fd: int = -1, ready_fd: int = -1,
        also: Callable[[ControlPlane], Any] | None = None) -> None:  # fmt: skip
    """Serves until told to stop by SIGTERM or SIGINT, or, embedded, until `watch_fd` closes. `also` starts beside
    it."""
    os.environ.pop("NUBES_DATABASE", None)  # its password is not for the functions that run below this process
    try:
        import uvloop

        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    except ImportError:  # not on every platform
        runner = asyncio.Runner()
    with runner:
        plane = partial(ControlPlane, folder, policies, cpu, memory_bytes, database, objects)
        runner.run(_serve(plane, watch_fd, ready_fd, also))


async def _serve(
    make: Callable[[], ControlPlane], watch_fd: int, ready_fd: int, also: Callable[[ControlPlane], Any] | None
) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    plane = make()
    try:
        plane.start(loop)
    except BaseException:
        plane.let_go()
        raise
    printed = LogStore(plane.folder / "logs", loop, plane.clock)
    plane.prints = printed.add
    listener = listen(plane, stop)
    for finding in plane.journal.log.findings:
        complain(finding)
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    if watch_fd >= 0:
        loop.add_reader(watch_fd, stop.set)
    companion = also(plane) if also is not None else None
    if companion is not None:
        companion = await companion
    if ready_fd >= 0:
        os.write(ready_fd, b"1")
        os.close(ready_fd)
    try:
        await stop.wait()
    finally:
        if companion is not None:
            await companion.close()
        listener.close()
        (plane.folder / "socket").unlink(missing_ok=True)
        plane.close()
        printed.close()


def main() -> None:
    """`python -m nubes.drivers.local.server FOLDER WATCH_FD READY_FD [SEAM=POLICY ...]`: an embedded control
    plane, its state where NUBES_DATABASE and NUBES_OBJECTS say."""
    folder, watch_fd, ready_fd = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    policies = dict(pair.split("=", 1) for pair in sys.argv[4:])
    try:
        database, objects = os.environ.get("NUBES_DATABASE", ""), os.environ.get("NUBES_OBJECTS", "")
        run(folder, policies, database=database, objects=objects, watch_fd=watch_fd, ready_fd=ready_fd)
    except NubesError as error:
        print(str(error), file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
