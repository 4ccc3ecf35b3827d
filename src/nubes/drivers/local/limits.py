"""What an instance may use, enforced by the kernel: cgroups where they are writable (v2, or v1), else resource limits.

A group is taken only for an instance that declares a limit, and used again: moving a process into one costs
milliseconds, more than
the fork itself. How many processes any instance may have is watched by `nubes.drivers.local.watchdog`.
"""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Iterable
from pathlib import Path

_CONTROLLERS = ("memory", "cpu")
_PERIOD_US = 100_000
_GONE_S = 1.0  # how long it may take until a group of killed processes is empty


class Limits:
    """The kind of limits this machine allows, and the groups in use. `kind` is cgroup2, cgroup1 or rlimit."""

    def __init__(self, name: str, root: Path = Path("/sys/fs/cgroup")) -> None:
        self.kind, self._base = _find(name, root)
        self._free: list[str] = []
        self._made = 0
        if self.kind != "rlimit":
            self.clean()

    def describe(self) -> str:
        """One sentence for `nubes up`."""
        if self.kind == "rlimit":
            return "resource limits (memory; CPU is not limited, since cgroups are not writable here)"
        version = "v2" if self.kind == "cgroup2" else "v1"
        return f"cgroup {version} (CPU and memory of instances that declare a limit)"

    def take(self, cpu: float, memory_bytes: int) -> str:
        """A group for one instance; empty where there are none, or nothing is to be limited."""
        if self.kind == "rlimit" or not (cpu or memory_bytes):
            return ""
        if self._free:
            return self._free.pop()
        self._made += 1
        name = str(self._made)
        for base in self._base.values():
            os.makedirs(f"{base}/{name}", exist_ok=True)
        return name

    def plan(self, group: str, cpu: float, memory_bytes: int) -> list[tuple[str, str]]:
        """The (file, content) pairs the instance writes to put itself under its limits; the last of each group moves
        it."""
        if not group:
            return []
        writes: list[tuple[str, str]] = []
        v2 = self.kind == "cgroup2"
        if "memory" in self._base and (memory_bytes or v2):
            file = "memory.max" if v2 else "memory.limit_in_bytes"
            writes.append((f"{self._base['memory']}/{group}/{file}", str(memory_bytes) if memory_bytes else "max"))
        if "cpu" in self._base and (cpu or v2):
            where = f"{self._base['cpu']}/{group}"
            quota = str(int(cpu * _PERIOD_US)) if cpu else "max"
            if v2:
                writes.append((f"{where}/cpu.max", f"{quota} {_PERIOD_US}"))
            else:
                writes += [(f"{where}/cpu.cfs_period_us", str(_PERIOD_US)), (f"{where}/cpu.cfs_quota_us", quota)]
        moves = ["cpu"] if v2 else [*(["memory"] if memory_bytes else []), *(["cpu"] if cpu else [])]
        writes += [(f"{self._base[c]}/{group}/cgroup.procs", "0") for c in moves if c in self._base]
        return writes

    def give_back(self, group: str) -> None:
        """The instance has ended: whatever it left behind is killed, and the group is free again."""
        if group:
            self.kill(group)
            self._free.append(group)

    def kill(self, group: str) -> None:
        """Ends every process of a group."""
        for base in self._base.values():
            for _ in range(50):
                if not _kill(Path(f"{base}/{group}/cgroup.procs")):
                    break

    def out_of_memory(self, group: str) -> bool:
        """Whether the kernel ended a process of this group because it passed its memory limit."""
        if not group or "memory" not in self._base:
            return False
        file, word = ("memory.events", "oom_kill") if self.kind == "cgroup2" else ("memory.oom_control", "oom_kill")
        try:
            for line in Path(f"{self._base['memory']}/{group}/{file}").read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == word and int(count):
                    return True
        except OSError:
            pass
        return False

    def retire(self, group: str) -> None:
        """A group whose counters are used up is not used again."""
        self.kill(group)
        self._remove([group])

    def clean(self) -> None:
        """Ends and removes whatever an earlier control plane of this name left behind."""
        for base in self._base.values():
            groups = [path.name for path in Path(base).iterdir() if path.is_dir()] if os.path.isdir(base) else []
            for group in groups:
                self.kill(group)
            until = time.monotonic() + _GONE_S
            while not self._remove(groups) and time.monotonic() < until:
                time.sleep(0.01)  # what was killed is about to be gone
            os.makedirs(base, exist_ok=True)
        if self.kind == "cgroup2":
            _delegate(Path(next(iter(self._base.values()))))

    def close(self) -> None:
        if self.kind == "rlimit":
            return
        self.clean()
        for base in set(self._base.values()):
            try:
                os.rmdir(base)
            except OSError:
                pass

    def _remove(self, groups: Iterable[str]) -> bool:
        """Whether all of them are gone."""
        left = 0
        for base in self._base.values():
            for group in groups:
                try:
                    os.rmdir(f"{base}/{group}")
                except FileNotFoundError:
                    pass
                except OSError:
                    left += 1
        return not left


def enter(writes: list[tuple[str, str]], memory_bytes: int, has_groups: bool) -> None:
    """Puts the calling process under its limits."""
    for path, content in writes:
        with open(path, "w") as file:
            file.write(content)
    if memory_bytes and not has_groups:
        # Data and anonymous memory beyond what was inherited: an allocation fails with MemoryError, nothing is killed.
        inherited = _data_bytes()
        resource.setrlimit(resource.RLIMIT_DATA, (inherited + memory_bytes, inherited + memory_bytes))


def _data_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[5]) * resource.getpagesize()


def _find(name: str, root: Path) -> tuple[str, dict[str, str]]:
    """The first hierarchy in which groups can be made: v2, then v1, then none."""
    for v2 in (root, root / "unified"):
        try:
            if {"memory", "cpu"} <= set((v2 / "cgroup.controllers").read_text().split()):
                base = v2 / name
                base.mkdir(exist_ok=True)
                _delegate(v2)
                if (base / "memory.max").exists():
                    return "cgroup2", dict.fromkeys(_CONTROLLERS, str(base))
        except OSError:
            continue
    bases: dict[str, str] = {}
    for controller in _CONTROLLERS:
        try:
            (root / controller / name).mkdir(exist_ok=True)
            bases[controller] = str(root / controller / name)
        except OSError:
            continue
    return ("cgroup1", bases) if len(bases) == 2 else ("rlimit", {})


def _delegate(group: Path) -> None:
    try:
        (group / "cgroup.subtree_control").write_text(" ".join(f"+{c}" for c in _CONTROLLERS))
    except OSError:
        pass


def _kill(procs: Path) -> bool:
    try:
        pids = [int(line) for line in procs.read_text().split()]
    except OSError:
        return False
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    return bool(pids)
