"""Secrets at rest: one file each, which only its owner may read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path


class SecretFiles:
    """The files `<name>.json` in a folder. See `nubes.drivers.local.secrets.Keeper`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True, mode=0o700)

    def load(self) -> dict[str, tuple[dict[str, str], float]]:
        return {path.stem: (json.loads(path.read_text()), path.stat().st_mtime) for path in self._folder.glob("*.json")}

    def store(self, name: str, values: Mapping[str, str]) -> None:
        """Whole or not at all."""
        path = self._folder / f"{name}.json"
        temporary = path.with_suffix(".tmp")
        temporary.unlink(missing_ok=True)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(dict(values), file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def remove(self, name: str) -> None:
        (self._folder / f"{name}.json").unlink(missing_ok=True)

    def close(self) -> None:
        """Nothing is open."""
