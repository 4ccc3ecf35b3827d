"""Secrets at rest: one file each, which only its owner may read."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path

from nubes.kernel.errors import NotFound, UsageError

ANONYMOUS = "anonymous-"  # how the names of secrets begin that came with an app
_UNUSED_S = 3600.0  # how long such a secret is kept that no function uses


def put(folder: Path, name: str, values: Mapping[str, str], replace: bool) -> None:
    """Stores a secret, whole or not at all. Raises `UsageError` if it is there and may not be replaced."""
    path = _path(folder, name)
    if path.exists() and not replace:
        raise UsageError(f"There is a secret named {name!r} already.", "Choose another name, or allow_existing=True.")
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(dict(values), file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def check(folder: Path, name: str, required: Collection[str]) -> None:
    """Raises `NotFound` if the secret is not there or lacks a key."""
    path = _path(folder, name)
    if not path.exists():
        known = ", ".join(listed(folder)) or "none"
        raise NotFound(
            f"There is no secret named {name!r}.",
            f"Secret.objects.create({name!r}, ...) stores one; there are: {known}.",
        )
    missing = [key for key in required if key not in json.loads(path.read_text())]
    if missing:
        raise NotFound(f"Secret {name!r} has no {', '.join(missing)}.", "Store it again with all its keys.")


def listed(folder: Path) -> list[str]:
    """The names of the secrets that were given one."""
    return sorted(path.stem for path in folder.glob("*.json") if not path.name.startswith(ANONYMOUS))


def delete(folder: Path, name: str, allow_missing: bool) -> None:
    """Raises `NotFound` if there is no such secret."""
    try:
        _path(folder, name).unlink()
    except FileNotFoundError:
        if not allow_missing:
            raise NotFound(
                f"There is no secret named {name!r}.", f"There are: {', '.join(listed(folder)) or 'none'}."
            ) from None


def tidy(folder: Path, used: Collection[str]) -> None:
    """Removes secrets that came with an app which is gone."""
    for path in folder.glob(f"{ANONYMOUS}*.json"):
        if path.stem not in used and path.stat().st_mtime < time.time() - _UNUSED_S:
            path.unlink(missing_ok=True)


def _path(folder: Path, name: str) -> Path:
    if not name or "/" in name or name.startswith("."):
        raise UsageError(f"{name!r} cannot be the name of a secret.", "Use letters, digits, dashes and dots.")
    return folder / f"{name}.json"
