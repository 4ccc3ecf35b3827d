"""What an instance finds when it starts, and what it may do then."""

from __future__ import annotations

import asyncio
import os
import threading
import time

import nubes

app = nubes.App("starts")
COLOUR_AT_IMPORT = os.environ.get("STARTS_COLOUR", "")
TOKEN_AT_IMPORT = os.environ.get("STARTS_TOKEN", "")


@app.function(single_use=True, env={"STARTS_COLOUR": "blue"})
def colour() -> tuple[str, str]:
    return COLOUR_AT_IMPORT, os.environ.get("STARTS_COLOUR", "")


@app.function(single_use=True)
def colourless() -> tuple[str, str]:
    return COLOUR_AT_IMPORT, os.environ.get("STARTS_COLOUR", "")


@app.function(single_use=True, secrets=[nubes.Secret.from_name("turning")])
def token() -> tuple[str, str]:
    return TOKEN_AT_IMPORT, os.environ.get("STARTS_TOKEN", "")


@app.function(single_use=True)
def forks_beside_a_thread() -> tuple[int, bool]:
    """Threads that a child of an instance counts, and whether it could log while its parent held the lock."""
    import logging

    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        logging.getLogger("starts").debug("a child")
        logged = threading.Thread(target=logging.getLogger("starts").addHandler, args=(logging.NullHandler(),))
        logged.start()  # takes the lock of the logging module in another thread
        logged.join(5)
        os.write(write, bytes([threading.active_count(), not logged.is_alive()]))
        os._exit(0)
    os.waitpid(pid, 0)
    count, logged_too = os.read(read, 2)
    stop.set()
    thread.join()
    return count, bool(logged_too)


@app.function(retries=0)
def dies_but_its_child_lives(code: int) -> None:
    """The child keeps all descriptors, the instance's socket among them."""
    if os.fork() == 0:
        time.sleep(30)
        os._exit(0)
    os._exit(code)


@app.cls()
class Loops:
    @nubes.enter()
    async def enter(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.queue: asyncio.Queue[int] = asyncio.Queue()

    @nubes.method()
    async def same(self) -> bool:
        await self.queue.put(1)
        return await self.queue.get() == 1 and self.loop is asyncio.get_running_loop()


@app.cls()
@nubes.concurrent(max_inputs=4)
class ManyLoops:
    @nubes.enter()
    async def enter(self) -> None:
        self.loop = asyncio.get_running_loop()

    @nubes.method()
    async def same(self) -> bool:
        return self.loop is asyncio.get_running_loop()
