"""Arguments on their way to a function, and the shared memory that large ones lie in."""

from __future__ import annotations

import sys
from typing import Any

from nubes.drivers.local import loading, payload
from nubes.kernel.errors import NubesError, Unavailable, UsageError


class Arguments:
    """What this process sends: as bytes, with large buffers in segments under `shared` (or `objects`, to last)."""

    def __init__(self, shared: str, objects: str) -> None:
        main = sys.modules["__main__"]
        sys.modules.setdefault(loading.MAIN, main)  # what a script's classes are called in the cloud
        self.by_value = not hasattr(main, "__file__")
        self.shared = shared
        self.segments = payload.Segments(shared)
        self.objects = payload.Segments(objects, durable=True)

    def renew(self) -> None:
        """After a fork: the segments are the parent's."""
        self.segments = payload.Segments(self.shared)

    def dumps(self, value: Any, keep: bool = False) -> bytes:
        """`value` as a payload; with `keep` its large buffers survive a crash. Raises `UsageError`, `Unavailable`."""
        try:
            return payload.dumps(value, self.objects if keep else self.segments, self.by_value)
        except NubesError:
            raise
        except OSError as error:
            raise Unavailable(
                f"An argument cannot be put where the function can read it: {error.strerror or error}.",
                "Free some space there, then try again.",
            ) from error
        except Exception as error:
            raise UsageError(
                f"An argument cannot be sent to the function: {type(error).__name__}: {error}.",
                "Pass plain data, arrays or importable classes; open files, locks and sockets stay where they are.",
            ) from error

    def settle(self, data: bytes, released: bool) -> None:
        """The call has ended: its arguments' segment is used again if nobody reads it any more."""
        if data[:1] == b"S":
            path = payload.segment_of(data)
            if released:
                self.segments.recycle(path)
            else:
                self.segments.forget(path)
                payload.discard(path)

    def close(self) -> None:
        """Gives back the shared memory."""
        self.segments.close()
