"""How long a client waits for an answer, and for a control plane that went away to come back."""

from __future__ import annotations

import time

from nubes.kernel.errors import Unavailable

_PAUSES_S = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)


class Patience:
    """Of one who waits at most `timeout` seconds (None: for ever) for what is kept, whatever becomes of connections."""

    def __init__(self, timeout: float | None) -> None:
        self._end = None if timeout is None else time.monotonic() + timeout
        self._pauses = iter(_PAUSES_S)

    @property
    def left_s(self) -> float | None:
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def pause_s(self, error: Unavailable) -> float:
        """How long to wait before the next try; raises the error if none is worth it."""
        pause, left = next(self._pauses, None), self.left_s
        if pause is None or (left is not None and left <= pause):
            raise error
        return pause
