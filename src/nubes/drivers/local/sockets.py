"""Unix sockets to listen on, wherever their folder is."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from nubes.kernel.errors import UsageError


def listen(path: Path) -> socket.socket:
    """A socket at `path` that only its owner can connect to, in place of what was there. Raises `UsageError`."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    try:
        # Paths are limited to about 100 bytes: a long one is reached through a descriptor of its folder.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            listener.bind(str(path) if len(str(path)) < 100 else f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)
    except OSError as error:
        listener.close()
        raise UsageError(
            f"The socket {path} cannot be opened: {error.strerror}.", "Choose another folder with --data."
        ) from None
    os.chmod(path, 0o600)
    listener.listen(512)
    listener.setblocking(False)
    return listener
