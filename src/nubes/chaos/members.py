"""The processes of a run: they are started, watched as a supervisor would, and found again by a mark they all bear."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

MARK = "NUBES_CHAOS_RUN"
AGAIN_S = 0.2  # how soon one that cannot start is started again
_SHARED = re.compile(r"/dev/shm/(nubes-\d+-[0-9a-z-]+)/")


class Member:
    """A process that is started again whenever it ends. `argv` is asked for anew each time."""

    def __init__(self, role: str, argv: Callable[[], list[str]], env: dict[str, str], out: Path) -> None:
        self.role = role
        self.argv = argv
        self.env = env
        self.out = out
        self.process: subprocess.Popen[bytes] | None = None
        self.killed = False  # by a fault, just now
        self.wanted = True
        self.starts = 0
        self._not_before_s = 0.0

    @property
    def pid(self) -> int:
        return self.process.pid if self.process is not None and self.process.poll() is None else 0

    def start(self) -> None:
        self.starts += 1
        with self.out.open("ab") as out:
            self.process = subprocess.Popen(
                self.argv(), env=self.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )

    def watch(self) -> str:
        """Starts it again if it ended; what to say of it if nobody ended it."""
        if not self.wanted or self.process is None or self.process.poll() is None:
            return ""
        if time.monotonic() < self._not_before_s:
            return ""
        alone, code = not self.killed, self.process.returncode
        self.killed = False
        self._not_before_s = time.monotonic() + AGAIN_S
        self.start()
        return f"{self.role} ended by itself with code {code}: {self.last_words()}" if alone else ""

    def last_words(self) -> str:
        lines = self.out.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def kill(self) -> None:
        if self.pid:
            self.killed = True
            signalled(self.pid, signal.SIGKILL)

    def end(self, within_s: float) -> bool:
        """Asks it to end, and waits; whether it did."""
        self.wanted = False
        if self.process is None or not self.pid:
            return True
        signalled(self.pid, signal.SIGTERM)
        try:
            self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            signalled(self.pid, signal.SIGKILL)
            self.process.wait()
            return False
        return True


def marked(run: str) -> dict[int, int]:
    """pid -> parent of every living process of a run."""
    found = {}
    needle = f"{MARK}={run}".encode()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if needle not in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                    continue
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                found[int(name)] = int(fields[1])
    return found


def shared_folders(pids: list[int]) -> set[str]:
    """The names of folders in shared memory that these processes hold."""
    found = set()
    for pid in pids:
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                match = _SHARED.match(os.readlink(f"/proc/{pid}/fd/{fd}"))
                if match:
                    found.add(match[1])
        except OSError:
            continue
    return found


def left_over(run: str, folders: set[str], groups: set[str]) -> list[str]:
    """What is still there of a run whose processes have all been told to end."""
    found = [f"process {pid}: {_command(pid)}" for pid in sorted(marked(run))]
    found += [f"/dev/shm/{name}" for name in sorted(folders) if Path("/dev/shm", name).exists()]
    for controller in sorted(Path("/sys/fs/cgroup").glob("*")) if Path("/sys/fs/cgroup").exists() else []:
        found += [str(controller / name) for name in sorted(groups) if (controller / name).exists()]
        if controller.name in groups:
            found.append(str(controller))
    return found


def signalled(pid: int, what: int) -> bool:
    try:
        os.kill(pid, what)
    except ProcessLookupError:
        return False
    return True


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "?"
