"""The real command, run as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Nubes = Callable[..., subprocess.CompletedProcess[str]]
COMMAND = [sys.executable, "-m", "nubes.cli.main"]


def command(data: Path, cwd: Path) -> Nubes:
    def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("NUBES_") or k == "NUBES_TRACES"}
        own: dict[str, Any] = {**kept, "NUBES_DATA": str(data), "XDG_CONFIG_HOME": str(cwd / "config"), **env}
        return subprocess.run([*COMMAND, *words], capture_output=True, text=True, cwd=cwd, env=own, timeout=90)

    return run
