"""The process of a control plane: serves until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Protocol

from nubes.drivers.local.control_plane import ControlPlane
from nubes.drivers.local.journal import complain
from nubes.drivers.local.logstore import LogStore
from nubes.drivers.local.sessions import listen
from nubes.kernel.errors import NubesError, UsageError


class Companion(Protocol):
    """What serves beside a control plane."""

    async def close(self) -> None: ...


Beside = Callable[[ControlPlane], Awaitable[Companion]]


def run(make: Callable[[], ControlPlane], *beside: Beside, watch_fd: int = -1, ready_fd: int = -1) -> None:
    """Serves what `make` makes until told to stop by SIGTERM or SIGINT, or, embedded, until `watch_fd` closes.

    What is `beside` starts after it, in turn, and is closed before it.
    """
    os.environ.pop("NUBES_DATABASE", None)  # its password is not for the functions that run below this process
    try:
        import uvloop

        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    except ImportError:  # not on every platform
        runner = asyncio.Runner()
    with runner:
        runner.run(_serve(make, beside, watch_fd, ready_fd))


async def _serve(make: Callable[[], ControlPlane], beside: Sequence[Beside], watch_fd: int, ready_fd: int) -> None:
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
    async with AsyncExitStack() as companions:
        companions.callback(_end, plane, listener, printed)
        for start in beside:
            companions.push_async_callback((await start(plane)).close)
        if ready_fd >= 0:
            os.write(ready_fd, b"1")
            os.close(ready_fd)
        await stop.wait()


def _end(plane: ControlPlane, listener: socket.socket, printed: LogStore) -> None:
    listener.close()
    (plane.folder / "socket").unlink(missing_ok=True)
    plane.close()
    printed.close()


def machines(on: str, address: str) -> tuple[Callable[..., ControlPlane], list[Beside]]:
    """What makes a control plane on these machines, and what serves beside it. Raises `UsageError`."""
    if on in ("", "local"):
        return ControlPlane, []
    if on != "ray":
        raise UsageError(f"nubes does not run on {on!r}.", "Write --on local or --on ray.")
    from nubes.drivers.ray.cluster import Cluster

    cluster = Cluster(address)
    return cluster.control_plane, [cluster.start]


def main() -> None:
    """`python -m nubes.drivers.local.server FOLDER WATCH_FD READY_FD [SEAM=POLICY ...]`: an embedded control plane.

    Its state is where NUBES_DATABASE and NUBES_OBJECTS say, and its machines are those of NUBES_ON.
    """
    folder, watch_fd, ready_fd = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    policies = dict(pair.split("=", 1) for pair in sys.argv[4:])
    settings = {name: os.environ.get(f"NUBES_{name.upper()}", "") for name in ("database", "objects", "agents")}
    try:
        make, beside = machines(os.environ.get("NUBES_ON", ""), os.environ.get("NUBES_ADDRESS", ""))
        run(partial(make, folder, policies, **settings), *beside, watch_fd=watch_fd, ready_fd=ready_fd)
    except NubesError as error:
        print(str(error), file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
