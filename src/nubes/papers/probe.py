"""A black-box probe of any serverless platform: what `Peeking Behind the Curtains` measured from outside (ATC 2018).

Deploy `observe` there, give its address: `python -m nubes.papers.probe URL`. It takes `spin_s` and says which instance
and host it ran on. Probes only call, wait and compare.
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import msgspec

BIN_S = 1e-3
PACKED, SPREAD = 0.9, 0.02  # share of co-resident pairs from which on, and up to which, a placement is named

_identity: list[str] = []


class Reply(msgspec.Struct, frozen=True):
    """What one call saw: its instance, its host, the version of its code, the share of a CPU it got while spinning."""

    instance: str
    host: str
    version: str = ""
    cpu_share: float = 0.0


class Endpoint(Protocol):
    """A deployed `observe`."""

    def burst(self, calls: int, spin_s: float) -> list[Reply]:
        """So many calls at once, each of which keeps its instance busy for `spin_s`."""

    def wait(self, seconds: float) -> None:
        """Leaves the platform alone."""


def observe(spin_s: float = 0.0, version: str = "") -> dict[str, Any]:
    """Runs on the platform: who and where it is, and how much of a CPU it gets in `spin_s` (0: not measured)."""
    if not _identity:
        _identity.append(os.urandom(8).hex())
    share = 0.0
    if spin_s:
        begun = now = time.perf_counter()
        bins = set()
        while now < begun + spin_s:
            bins.add(int((now - begun) / BIN_S))
            now = time.perf_counter()
        share = len(bins) / (spin_s / BIN_S)
    with open("/proc/sys/kernel/random/boot_id") as file:
        host = file.read().strip()
    return {"instance": _identity[0], "host": host, "version": version, "cpu_share": share}


def idle_lifetime(endpoint: Endpoint, shortest_s: float, longest_s: float, precision: float = 0.02) -> float:
    """Seconds an idle instance lives: doubles the wait until the instance is another one, then bisects."""

    def survives(idle_s: float) -> bool:
        (before,) = endpoint.burst(1, 0.0)
        endpoint.wait(idle_s)
        return endpoint.burst(1, 0.0)[0].instance == before.instance

    low, high = 0.0, shortest_s
    while survives(high):
        low, high = high, 2.0 * high
        if high > longest_s:
            return longest_s
    while high - low > precision * high:
        middle = (low + high) / 2.0
        low, high = (middle, high) if survives(middle) else (low, middle)
    return (low + high) / 2.0


def placement(endpoint: Endpoint, trials: int = 30, calls: int = 4, spin_s: float = 0.2, recycle_s: float = 0.0) -> str:
    """pack, spread or random: by how often two instances of a small burst share a host.

    `recycle_s` is how long it takes until the next trial gets new instances.
    """
    pairs = together = 0
    for _ in range(trials):
        hosts = list({reply.instance: reply.host for reply in endpoint.burst(calls, spin_s)}.values())
        pairs += len(hosts) * (len(hosts) - 1) // 2
        together += sum(count * (count - 1) // 2 for count in Counter(hosts).values())
        endpoint.wait(recycle_s)
    share = together / max(1, pairs)
    return "pack" if share >= PACKED else "spread" if share <= SPREAD else "random"


def instances_per_host(endpoint: Endpoint, calls: int = 200, spin_s: float = 1.0) -> int:
    """The most instances that one host takes."""
    hosts = {reply.instance: reply.host for reply in endpoint.burst(calls, spin_s)}
    return max(Counter(hosts.values()).values())


def survivors(endpoint: Endpoint, idle_s: Sequence[float], calls: int = 64, spin_s: float = 1.0) -> list[float]:
    """The share of a burst's instances that are still there after each of these idle times."""
    shares = []
    for wait_s in idle_s:
        before = {reply.instance for reply in endpoint.burst(calls, spin_s)}
        endpoint.wait(wait_s)
        after = {reply.instance for reply in endpoint.burst(calls, spin_s)}
        shares.append(len(before & after) / len(before))
        endpoint.wait(max(idle_s) * 10)  # so that nothing is left of this burst
    return shares


def cpu_share(endpoint: Endpoint, spin_s: float = 1.0, calls: int = 3) -> float:
    """The median share of a CPU that a call gets."""
    return sorted(endpoint.burst(1, spin_s)[0].cpu_share for _ in range(calls))[calls // 2]


def stale(endpoint: Endpoint, version: str, calls: int = 100) -> float:
    """The share of calls, one after the other, that another version than `version` answers."""
    return sum(endpoint.burst(1, 0.0)[0].version != version for _ in range(calls)) / calls


class Http:
    """`observe` behind a URL."""

    def __init__(self, url: str, at_once: int = 200) -> None:
        self.url = url
        self.threads = ThreadPoolExecutor(at_once)

    def burst(self, calls: int, spin_s: float) -> list[Reply]:
        return list(self.threads.map(self._call, [spin_s] * calls))

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def _call(self, spin_s: float) -> Reply:
        with urllib.request.urlopen(f"{self.url}?spin_s={spin_s}", timeout=300) as answer:
            return msgspec.json.decode(answer.read(), type=Reply)


def main() -> None:
    """Prints one report as JSON."""
    endpoint = Http(sys.argv[1])
    idle_s = idle_lifetime(endpoint, 1.0, 3600.0)
    report = {
        "idle_lifetime_s": idle_s,
        "placement": placement(endpoint, recycle_s=1.5 * idle_s),
        "instances_per_host": instances_per_host(endpoint),
        "cpu_share": cpu_share(endpoint),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
