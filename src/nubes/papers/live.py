"""What the live reproductions share: a cloud of their own, functions made on the spot, and calls made by the clock."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from nubes import client as clients
from nubes.client import Client

POLICIES = {seam: f"NUBES_{seam.upper()}" for seam in ("keep_alive", "queueing", "cold_start", "balancing", "hedging")}
OURS = ("NUBES_DATA", "NUBES_SOCKET", "NUBES_APP", "NUBES_FUNCTION", *POLICIES.values())


@contextlib.contextmanager
def cloud(folder: Path, **policies: str) -> Iterator[Client]:
    """A control plane of its own on `folder`, under the named policies (`keep_alive`, `queueing`, ...)."""
    clients.disconnect()
    before = {name: os.environ.pop(name, None) for name in OURS}
    os.environ["NUBES_DATA"] = str(folder)
    os.environ.update({POLICIES[seam]: text for seam, text in policies.items()})
    try:
        yield clients.connect()
    finally:
        clients.disconnect()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def module(folder: Path, name: str, text: str) -> ModuleType:
    """A module with that text, as if a user had written it to `folder`; instances import it from there."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


def timed(call: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def settle(client: Client, ready: Callable[[dict[str, Any]], bool], timeout_s: float = 60.0) -> dict[str, Any]:
    """Waits until the control plane's status satisfies `ready`, and returns it."""
    until = time.monotonic() + timeout_s
    while True:
        status: dict[str, Any] = client.ask("status")
        if ready(status) or time.monotonic() > until:
            return status
        time.sleep(0.02)


def memory_bytes(pid: int, *kinds: str) -> int:
    """Memory of a process, by the kernel's words: `Pss` (shared pages in parts), or `Private_Dirty` and the like."""
    total = 0
    with open(f"/proc/{pid}/smaps_rollup") as file:
        for line in file:
            name, _, rest = line.partition(":")
            if name in kinds:
                total += int(rest.split()[0]) * 1024
    return total


def cloud_bytes(client: Client) -> int:
    """Memory of all instances and parents of a cloud, shared pages counted once."""
    status = client.ask("status")
    pids = [one["pid"] for one in (*status["instances"], *status["parents"]) if one["pid"]]
    return sum(memory_bytes(pid, "Pss") for pid in pids)


async def by_the_clock(calls: Sequence[tuple[float, Any, tuple[Any, ...]]]) -> list[tuple[float, Any]]:
    """Makes each (seconds from now, function, arguments) at its time, whatever the others do.

    Returns (seconds it took, result or exception) for each, in order.
    """
    begun = time.perf_counter()

    async def one(at_s: float, function: Any, args: tuple[Any, ...]) -> tuple[float, Any]:
        await asyncio.sleep(max(0.0, begun + at_s - time.perf_counter()))
        called = time.perf_counter()
        try:
            outcome = await function.remote.aio(*args)
        except Exception as error:
            outcome = error
        return time.perf_counter() - called, outcome

    return list(await asyncio.gather(*(one(*call) for call in calls)))
