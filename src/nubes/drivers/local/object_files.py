"""Large buffers in files that outlive a crash, where objects are kept in a folder."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Sequence

_ROOM_S = 0.2  # how soon a full disk is tried again


def write(path: str, buffers: Sequence[memoryview], spans: Sequence[tuple[int, int]], patient: bool) -> None:
    """Writes a file, flushed, whole or not at all. Who is `patient` waits for room; others get `OSError`."""
    while True:
        try:
            with open(path, "wb", buffering=0) as file:
                for (start, _), buffer in zip(spans, buffers, strict=True):
                    file.seek(start)
                    while buffer.nbytes:
                        buffer = buffer[file.write(buffer) :]
                os.fsync(file.fileno())
            return
        except OSError as error:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            if not patient or error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
        time.sleep(_ROOM_S)
