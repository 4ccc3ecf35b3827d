"""A service that refuses what is too much for it, and functions that call it: live overload, for the reproductions."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from nubes.papers.context import Context
from nubes.papers.live import cloud, module

CALLEE_RPS, CALLERS = 100.0, 3  # what the service sustains; functions, each of which calls it that often

SERVICE = """
import http.server, sys, threading, time
rate, tokens, filled, lock = float(sys.argv[1]), 10.0, time.monotonic(), threading.Lock()

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        global tokens, filled
        with lock:
            now = time.monotonic()
            tokens, filled = min(10.0, tokens + (now - filled) * rate), now
            fine = tokens >= 1.0
            tokens -= fine
        self.send_response(200 if fine else 503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""

CALLER = """
import http.client, nubes
app = nubes.App("callers")
_service = []

class Refused(Exception):
    __nubes_backpressure__ = "service"

def call(port):
    if not _service:
        _service.append(http.client.HTTPConnection("127.0.0.1", port))
    _service[0].request("GET", "/")
    answer = _service[0].getresponse()
    answer.read()
    if answer.status == 503:
        raise Refused()
"""


def pushed(ctx: Context, queueing: str, seed: int, length_s: float, warm_s: float) -> tuple[float, float]:
    """(answered a second / capacity, refused / issued) between `warm_s` and `length_s`."""
    code = CALLER + "".join(
        f"\n@app.function(cpu=0.01)\ndef f{i}(port):\n    return call(port)\n" for i in range(CALLERS)
    )
    made = module(ctx.folder / "code", "nubes_callers", code)
    ends: list[tuple[float, bool]] = []

    async def one(at_s: float, function: Any, port: int, begun: float) -> None:
        await asyncio.sleep(max(0.0, begun + at_s - time.perf_counter()))
        try:
            await function.remote.aio(port)
            fine = True
        except made.Refused:
            fine = False
        ends.append((time.perf_counter() - begun, fine))

    async def push(port: int) -> None:
        begun = time.perf_counter()
        calls = [
            asyncio.ensure_future(one(n / CALLEE_RPS, getattr(made, f"f{i}"), port, begun))
            for n in range(int(length_s * CALLEE_RPS))
            for i in range(CALLERS)
        ]
        await asyncio.sleep(length_s)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    folder = ctx.folder / f"callers-{queueing.partition('(')[0]}-{seed}"
    with service(ctx.folder) as port, cloud(folder, queueing=queueing), made.app.run():
        asyncio.run(push(port))
    counted = [fine for at, fine in ends if warm_s <= at < length_s]
    answered = sum(counted)
    return answered / (length_s - warm_s) / CALLEE_RPS, 1.0 - answered / max(1, len(counted))


class service:
    """A process that answers `CALLEE_RPS` requests a second and refuses the rest; gives its port."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "service.py"

    def __enter__(self) -> int:
        self.path.write_text(SERVICE)
        argv = [sys.executable, str(self.path), str(CALLEE_RPS)]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
