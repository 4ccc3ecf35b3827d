"""Platforms as published, in virtual time, for probes to find out about."""

from __future__ import annotations

import msgspec

from nubes.kernel.rng import rng
from nubes.papers.probe import Reply


class Profile(msgspec.Struct, frozen=True):
    """How a platform places and recycles instances. Medians of 2018, from over 50,000 instances; approximate."""

    placement: str  # pack | spread | random
    memory_mb: int = 128  # of one instance
    host_mb: int = 3_328  # all instances of one tenant on one host
    hosts: int = 64
    keep_s: float = 600.0  # after this long idle an instance goes
    halve_s: float = 0.0  # if set: every so often half of a function's idle instances go instead
    last_s: float = 0.0  # with halving: when the last one goes


PROFILES = {
    "aws-2018": Profile("pack", keep_s=0.0, halve_s=300.0, last_s=27 * 60.0),
    "azure-2018": Profile("random", memory_mb=1_536, host_mb=3_072, hosts=16, keep_s=20 * 60.0),
    "gcf-2018": Profile("spread", keep_s=15 * 60.0),
}


class Platform:
    """An endpoint that behaves like a profile. Idle instances go youngest last, as they fell idle."""

    def __init__(self, profile: Profile, seed: int = 0) -> None:
        self.profile = profile
        self.now = 0.0
        self.idle: list[tuple[float, int, int]] = []  # (since, instance, host)
        self.made = 0
        self.draw = rng(seed, "platform")

    def wait(self, seconds: float) -> None:
        """Time passes, and idle instances go."""
        end, profile = self.now + seconds, self.profile
        if not profile.halve_s:
            self.idle = [one for one in self.idle if one[0] + profile.keep_s >= end]
        elif self.idle:
            since = max(one[0] for one in self.idle)
            halvings = int((end - since) / profile.halve_s) - int((self.now - since) / profile.halve_s)
            self.idle = self.idle[len(self.idle) - len(self.idle) // 2**halvings :]
            if end >= since + profile.last_s:
                self.idle = []
        self.now = end

    def burst(self, calls: int, spin_s: float) -> list[Reply]:
        """Calls at once: idle instances first, then new ones, placed by the profile's rule."""
        used = [self.idle.pop() for _ in range(min(calls, len(self.idle)))]
        room = dict.fromkeys(range(self.profile.hosts), self.profile.host_mb // self.profile.memory_mb)
        for _, _, host in (*used, *self.idle):
            room[host] -= 1
        while len(used) < calls:
            host = self._place(room)
            room[host] -= 1
            self.made += 1
            used.append((self.now, self.made, host))
        self.now += spin_s
        self.idle += [(self.now, instance, host) for _, instance, host in used]
        return [Reply(f"i{instance}", f"h{host}") for _, instance, host in used]

    def _place(self, room: dict[int, int]) -> int:
        free = [host for host, left in room.items() if left > 0]
        if self.profile.placement == "random":
            return self.draw.choice(free)
        best = max if self.profile.placement == "spread" else min
        return best(free, key=lambda host: (room[host], -host if best is max else host))
