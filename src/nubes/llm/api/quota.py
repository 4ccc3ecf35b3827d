"""How much each user may ask for: a token bucket (of requests, of tokens) that fills evenly over a minute."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from nubes.llm.api.problems import Problem

USERS = 10_000  # as many are remembered, the latest


class Quota(msgspec.Struct, frozen=True, kw_only=True):
    """What one user may have in a minute. None: as much as there is."""

    requests: int | None = None
    tokens: int | None = None  # prompt and answer


class Bucket:
    """Starts full. What is taken out may leave it below zero: how long an answer gets is known only afterwards."""

    def __init__(self, size: int, now_s: float) -> None:
        self.size = size
        self.left = float(size)
        self.at_s = now_s

    def refill(self, now_s: float) -> float:
        self.left = min(self.size, self.left + (now_s - self.at_s) * self.size / 60)
        self.at_s = now_s
        return self.left

    def wait_s(self, amount: float) -> float:
        """Until there is `amount` in it."""
        return max(0.0, (amount - self.left) * 60 / self.size)


class Quotas:
    """Counts what users take. `clock` is in seconds."""

    def __init__(self, quota: Quota, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.sizes = {
            kind: size for kind, size in (("requests", quota.requests), ("tokens", quota.tokens)) if size is not None
        }
        self.users: OrderedDict[str, dict[str, Bucket]] = OrderedDict()

    def admit(self, user: str) -> dict[str, str]:
        """Takes a request. Returns the headers that say what is left. Raises `Problem` 429 if there is nothing."""
        buckets, now_s = self._buckets(user), self.clock()
        for bucket in buckets.values():
            bucket.refill(now_s)
        for kind, bucket in buckets.items():
            wait_s = bucket.wait_s(1)
            if wait_s > 0:
                raise Problem(
                    429,
                    f"{bucket.size} {kind} a minute are allowed. Come again in {wait_s:.1f} s.",
                    code="rate_limit_exceeded",
                    headers={"retry-after": str(math.ceil(wait_s)), **_headers(buckets)},
                )
        if "requests" in buckets:
            buckets["requests"].left -= 1
        return _headers(buckets)

    def spend(self, user: str, tokens: int) -> None:
        bucket = self._buckets(user).get("tokens")
        if bucket is not None:
            bucket.refill(self.clock())
            bucket.left -= tokens

    def _buckets(self, user: str) -> dict[str, Bucket]:
        found = self.users.get(user)
        if found is None:
            now_s = self.clock()
            found = self.users[user] = {kind: Bucket(size, now_s) for kind, size in self.sizes.items()}
            if len(self.users) > USERS:
                self.users.popitem(last=False)
        self.users.move_to_end(user)
        return found


def _headers(buckets: dict[str, Bucket]) -> dict[str, str]:
    headers = {}
    for kind, bucket in buckets.items():
        headers[f"x-ratelimit-limit-{kind}"] = str(bucket.size)
        headers[f"x-ratelimit-remaining-{kind}"] = str(max(0, math.floor(bucket.left)))
        headers[f"x-ratelimit-reset-{kind}"] = f"{bucket.wait_s(bucket.size):.3f}s"
    return headers
