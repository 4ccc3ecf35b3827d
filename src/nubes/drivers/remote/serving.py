"""The process of an agent: serves until it is told to go."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from nubes.drivers.local.machine import here
from nubes.drivers.remote.agent import Agent
from nubes.drivers.remote.messages import About


def serve(
    folder: Path, address: tuple[str, int], token: str, name: str, zone: str = "", cpu: float = 0, memory_bytes: int = 0
) -> None:
    """Runs an agent until SIGINT or SIGTERM; then the machine drains and leaves, or at once at the second signal.

    Raises `UsageError` if the control plane does not let it in.
    """
    own_cpu, own_memory = here()
    about = About(0, name, cpu or own_cpu, memory_bytes or own_memory, zone)
    asyncio.run(_serve(folder, address, token, about))


async def _serve(folder: Path, address: tuple[str, int], token: str, about: About) -> None:
    def tell(text: str) -> None:
        print(f"nubes: {text}", file=sys.stderr, flush=True)

    agent = Agent(folder, address, token, about, tell=tell)
    asked = False

    def signalled() -> None:
        nonlocal asked
        if asked:
            agent.stop()
        else:
            asked = True
            tell("this machine drains, and leaves then; once more, and it leaves at once")
            agent.leave()

    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, signalled)
    tell(f"machine {about.name} joins {address[0]}:{address[1]} with {about.cpu:g} CPU (process {os.getpid()})")
    await agent.run()
