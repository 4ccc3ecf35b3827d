"""A control plane in a process of its own, to be killed and started again on the same folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from nubes import client as clients


class Plane:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Plane:
        reading, writing = os.pipe()
        self.watch = os.pipe()
        argv = [
            sys.executable,
            "-m",
            "nubes.drivers.local.server",
            str(self.folder),
            str(self.watch[0]),
            str(writing),
        ]
        self.complaints = open(self.folder.parent / "complaints", "a+b")
        self.process = subprocess.Popen(argv, pass_fds=(self.watch[0], writing), stderr=self.complaints)
        os.close(writing)
        assert os.read(reading, 1) == b"1", (self.folder.parent / "complaints").read_text()
        os.close(reading)
        return self

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        clients.disconnect()
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=30)
        for fd in self.watch:
            os.close(fd)

    def status(self) -> dict:
        return clients.connect(start=False).ask("status")

    def complaint(self) -> str:
        return (self.folder.parent / "complaints").read_text()


def until(condition, seconds=10.0, what=""):
    """Waits until `condition()` is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {what or condition}")
