"""Faults, as they are done to a cloud: each begins, may last for a while, and is undone."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from nubes.chaos.cloud import Cloud
from nubes.chaos.evidence import Broken
from nubes.chaos.journal import Journal
from nubes.chaos.members import Member, signalled
from nubes.chaos.network import Network
from nubes.chaos.schedule import FAULTS, Fault

T = TypeVar("T")
Undo = Callable[[], object]
SLOW_S = 0.5
MOST_OFF_S = 36_000.0  # from the slowest clock to the fastest is less than a day: for so long answers are kept


class Breaker:
    """Does the faults of a schedule when their time comes. `done` tells what was done, and to whom."""

    def __init__(self, cloud: Cloud, faults: Sequence[Fault]) -> None:
        self.cloud = cloud
        self.done: list[Broken] = []
        self._journal = Journal(cloud.folder / "faults.jsonl")
        self._start_s = time.monotonic()
        self._to_come = list(reversed(faults))
        self._under_way: list[tuple[float, Undo]] = []

    def step(self) -> None:
        """Begins and ends what is due."""
        now = time.monotonic()
        for until, undo in [one for one in self._under_way if one[0] <= now]:
            self._under_way.remove((until, undo))
            undo()
        while self._to_come and self._to_come[-1].at_s <= now - self._start_s:
            self._break(self._to_come.pop())

    def heal(self) -> None:
        """Undoes everything that still lasts."""
        for _, undo in self._under_way:
            undo()
        self._under_way.clear()

    def _break(self, fault: Fault) -> None:
        at = time.monotonic()
        begun = self._begin(fault)
        if begun is None:
            return  # there was nobody to do it to
        what, undo = begun
        self.done.append(Broken(fault.kind, at, time.monotonic() + fault.lasts_s, what))
        self._journal.write(self.done[-1])
        if undo is not None:
            self._under_way.append((at + fault.lasts_s, undo))

    def _begin(self, fault: Fault) -> tuple[str, Undo | None] | None:
        verb, _, whom = fault.kind.removesuffix("-long").partition("-")
        if verb in ("kill", "stop"):
            return self._signal(verb, whom, fault.choice)
        if fault.kind == "full-disk":
            return self._fill()
        if fault.kind == "slow-disk":
            self.cloud.preload.slow(SLOW_S * fault.choice)
            return f"{SLOW_S * fault.choice:.2f} s a flush", lambda: self.cloud.preload.slow(0.0)
        if fault.kind == "clock-step":
            seconds = int((2 * fault.choice - 1) ** 3 * MOST_OFF_S)
            self.cloud.preload.set(seconds)
            return f"to {seconds:+d} s", None
        network = _pick(self.cloud.networks, fault.choice)
        return self._network(verb, network, fault.choice) if network is not None else None

    def _network(self, verb: str, network: Network, choice: float) -> tuple[str, Undo | None]:
        if verb == "cut":
            network.reset()
        elif verb == "half":
            network.half_close(choice * 1e6 % 1 < 0.5)
        else:
            (network.partition if verb == "partition" else network.stall)()
            return network.address, network.heal
        return network.address, None

    def _signal(self, verb: str, whom: str, choice: float) -> tuple[str, Undo | None] | None:
        cloud = self.cloud
        if whom in ("instance", "parent"):
            pid = _pick(cloud.processes()[whom == "parent"], choice)
            if pid is None or not signalled(pid, signal.SIGKILL if verb == "kill" else signal.SIGSTOP):
                return None
            return f"process {pid}", (None if verb == "kill" else lambda: signalled(pid, signal.SIGCONT))
        several: dict[str, list[Member]] = {"plane": [cloud.plane], "agent": cloud.agents, "client": cloud.clients}
        member = _pick([one for one in several[whom] if one.pid], choice)
        if member is None:
            return None
        cloud.look()
        if verb == "kill":
            member.kill()
            return member.role, None
        stopped = member.pid
        signalled(stopped, signal.SIGSTOP)
        return member.role, lambda: signalled(stopped, signal.SIGCONT)

    def _fill(self) -> tuple[str, Undo]:
        path = self.cloud.data / "ballast"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT)
        about = os.fstatvfs(fd)
        written, more = 0, about.f_bavail * about.f_frsize
        try:
            while more:
                try:
                    os.posix_fallocate(fd, written, more)
                    written += more
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    more //= 2  # to the last byte
        finally:
            os.close(fd)
        return f"{written >> 20} MiB", lambda: path.unlink(missing_ok=True)


def possible(cloud: Cloud) -> tuple[list[str], list[str]]:
    """(kinds of faults that can be done to it, why others cannot)."""
    without: dict[str, str] = {}
    if not cloud.agents:
        named = ("-agent", "cut", "half-close", "stall", "partition")
        without |= {kind: "there are no machines" for kind in FAULTS if any(word in kind for word in named)}
    if not cloud.disk:
        without["full-disk"] = "the data folder is on no disk of its own (only root can mount one)"
    if not cloud.preload.env:
        without |= dict.fromkeys(("slow-disk", "clock-step"), "there is no C compiler")
    return [kind for kind in FAULTS if kind not in without], [f"{kind}: {why}" for kind, why in without.items()]


def _pick(several: Sequence[T], choice: float) -> T | None:
    return several[int(choice * len(several))] if several else None
