"""Finding a control plane, or starting one for this process."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nubes.client.client import Client
from nubes.kernel.errors import Unavailable

if TYPE_CHECKING:
    import subprocess

EMBEDDED = ("database", "objects", "on", "address", "agents")  # settings that an embedded control plane has, too
_shared: Client | None = None
_instead: Any = None
_lock = threading.Lock()


def data_folder() -> Path:
    """The data folder: `NUBES_DATA`, or that of a configuration file, or the user's."""
    folder = os.environ.get("NUBES_DATA")
    if not folder:
        from nubes import config  # what most processes of the cloud do without, and so their forks

        folder = config.resolve()["data"].value
    return Path(folder).expanduser().absolute()


def use(client: Any) -> None:
    """From here on `client` is this process's, whatever there is to connect to: a simulation's. None: as before."""
    global _instead
    _instead = client


def connect(start: bool = True) -> Client:
    """This process's client: of `NUBES_SOCKET`, of the control plane on the data folder, or of one it starts, embedded.

    Raises `Unavailable` if there is none and `start` is false.
    """
    global _shared
    if _instead is not None:
        made: Client = _instead
        return made
    with _lock:
        if _shared is not None and os.path.exists(_shared.path):
            return _shared
        path = os.environ.get("NUBES_SOCKET") or str(data_folder() / "socket")
        try:
            _shared = Client(path)
        except (Unavailable, ConnectionError):
            if not start or "NUBES_SOCKET" in os.environ:
                raise
            _start_embedded(data_folder())
            _shared = Client(path)
        return _shared


def disconnect() -> None:
    """Lets go of the control plane; one that was started for this process ends."""
    global _shared
    with _lock:
        if _shared is not None:
            _shared.close()
            _shared = None
        for process, watch in _embedded:
            os.close(watch)
            process.wait()
        _embedded.clear()


_embedded: list[tuple[subprocess.Popen[bytes], int]] = []


def _start_embedded(folder: Path) -> None:
    """Starts a control plane that ends with this process."""
    import subprocess
    import tempfile

    from nubes import config

    watch_reading, watch_writing = os.pipe()
    ready_reading, ready_writing = os.pipe()
    settings = config.resolve()
    policies = [f"{seam}={settings[seam].value}" for seam in config.POLICIES if settings[seam].value]
    argv = [
        sys.executable,
        "-P",
        "-m",
        "nubes.drivers.local.server",
        str(folder),
        str(watch_reading),
        str(ready_writing),
        *policies,
    ]
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(
            argv,
            pass_fds=(watch_reading, ready_writing),
            stdin=subprocess.DEVNULL,
            stderr=complaints,
            start_new_session=True,
            env={**os.environ, **{config.variable(name): str(settings[name].value) for name in EMBEDDED}},
        )
        os.close(watch_reading)
        os.close(ready_writing)
        ready = os.read(ready_reading, 1)
        os.close(ready_reading)
        if not ready:
            os.close(watch_writing)
            process.wait()
            complaints.seek(0)
            text = complaints.read().decode(errors="replace").strip()
            raise Unavailable(
                f"The control plane did not start: {text.splitlines()[-1] if text else 'it said nothing'}"
            )
    if not _embedded:
        atexit.register(disconnect)
    _embedded.append((process, watch_writing))
