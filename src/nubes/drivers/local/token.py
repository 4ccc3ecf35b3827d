"""The secret of a data folder: who knows it may ask for everything."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def token_of(folder: Path) -> str:
    """The data folder's token, made when it is first asked for; only its owner can read it."""
    path = folder / "token"
    if not path.exists():
        with contextlib.suppress(FileExistsError):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(fd, "w") as file:
                file.write(secrets.token_urlsafe(32) + "\n")
    return path.read_text().strip()
