"""Ends what an instance leaves behind, and instances that make too many processes.

Every instance leads a process group of its own, which all it starts belongs to unless it says otherwise. Counting
costs one small read as long as the machine's number of tasks does not jump.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable

MAX_TASKS = 512  # processes and threads that one instance may have
CHECK_S = 0.2
_JUMP = 256  # tasks that may come up between two looks before somebody is counted


class Watchdog:
    """`look` is called every `CHECK_S` seconds; `pids` are the live instances, `too_many` is told of one over the
    limit."""

    def __init__(self, pids: Callable[[], Iterable[int]], too_many: Callable[[int, int], None]) -> None:
        self._pids = pids
        self._too_many = too_many
        self._count_at = _tasks() + _JUMP  # nobody can be over the limit before the machine has this many tasks

    def look(self) -> None:
        now = _tasks()
        if now < self._count_at:
            self._count_at = min(self._count_at, now + _JUMP)
            return
        table = _table()
        most = 0
        for pid in list(self._pids()):
            count = sum(table[one][2] for one in _belonging(pid, table))
            if count > MAX_TASKS:
                self._too_many(pid, count)
                end(pid)
            else:
                most = max(most, count)
        self._count_at = _tasks() + max(16, min(_JUMP, MAX_TASKS - most))


def end(pid: int) -> None:
    """Kills a process, its group and everything below these, until nothing is left."""
    for _ in range(20):
        found = _belonging(pid, _table())
        if not found:
            return
        for one in found:
            _kill(one)
        _kill(-pid)


def end_group(pid: int) -> None:
    """Kills a process and its group: enough for one that did not try to get away."""
    _kill(-pid)
    _kill(pid)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def _tasks() -> int:
    with open("/proc/loadavg") as file:
        return int(file.read().split()[3].partition("/")[2])


def _table() -> dict[int, tuple[int, int, int]]:
    """pid -> (parent, process group, threads) of all living processes."""
    table = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    fields = file.read().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                table[int(name)] = (int(fields[1]), int(fields[2]), int(fields[17]))
    return table


def _belonging(pid: int, table: dict[int, tuple[int, int, int]]) -> set[int]:
    """A process, its group, and all descendants of these."""
    children: dict[int, list[int]] = {}
    for one, (parent, _, _) in table.items():
        children.setdefault(parent, []).append(one)
    found: set[int] = set()
    reached = [one for one, (_, group, _) in table.items() if one == pid or group == pid]
    while reached:
        one = reached.pop()
        if one not in found:
            found.add(one)
            reached += children.get(one, ())
    return found
