"""Wall clocks that jump and disks that are slow, for the processes of one cloud: a library is preloaded into them.

The machine's own clock stays as it is. It covers what these processes ask the C library for; times of files are the
kernel's, and a database server has its own clock. Without a C compiler there are no such faults.
"""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from pathlib import Path

CODE = Path(__file__).with_name("preload.c")


class Preload:
    """`env` is what processes are to be started with; empty where the library cannot be made."""

    def __init__(self, folder: Path) -> None:
        self.env: dict[str, str] = {}
        library, page = folder / "preload.so", folder / "preload.page"
        page.write_bytes(bytes(4096))
        with page.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), 4096)
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            return
        argv = [compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(CODE), "-ldl"]
        if subprocess.run(argv, capture_output=True, check=False).returncode == 0:
            self.env = {"LD_PRELOAD": str(library), "NUBES_CHAOS_PAGE": str(page)}

    def set(self, seconds: int) -> None:
        """From now on the wall clock is so many seconds ahead of the machine's."""
        struct.pack_into("d", self._page, 0, seconds)

    def slow(self, seconds: float) -> None:
        """From now on each flush takes so much longer."""
        struct.pack_into("d", self._page, 8, seconds)
