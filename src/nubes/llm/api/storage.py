"""The answers of /v1/responses that are kept, so that the next request can go on from them."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import msgspec

STORED = 1000
STORED_BYTES = 64 << 20


class Kept(msgspec.Struct, kw_only=True):
    """An answer, and the conversation up to it, without its instructions."""

    user: str
    body: bytes
    history: list[dict[str, Any]]
    size_bytes: int


class Store:
    """The latest answers, in memory: at most `count` of them, and 64 MiB. Each user sees only their own."""

    def __init__(self, count: int = STORED, size_bytes: int = STORED_BYTES) -> None:
        self.count = count
        self.size_bytes = size_bytes
        self.used_bytes = 0
        self._kept: OrderedDict[str, Kept] = OrderedDict()

    def put(self, id: str, user: str, body: bytes, history: list[dict[str, Any]]) -> None:
        size_bytes = len(body) + len(msgspec.json.encode(history))
        self._kept[id] = Kept(user=user, body=body, history=history, size_bytes=size_bytes)
        self.used_bytes += size_bytes
        while self._kept and (len(self._kept) > self.count or self.used_bytes > self.size_bytes):
            self.used_bytes -= self._kept.popitem(last=False)[1].size_bytes

    def get(self, id: str, user: str) -> Kept | None:
        found = self._kept.get(id)
        if found is None or found.user != user:
            return None
        self._kept.move_to_end(id)
        return found

    def drop(self, id: str, user: str) -> bool:
        """Whether it was there."""
        if self.get(id, user) is None:
            return False
        self.used_bytes -= self._kept.pop(id).size_bytes
        return True
