"""Fresh interpreters: roots of the process tree, and instances that have no parent in it."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

SOURCE = str(Path(__file__).parents[3])


class Interpreters:
    """Starts them. `python` gives the interpreter of an environment, `lifeline` is what they hang on."""

    def __init__(self, output: Path, lifeline: str, python: Callable[[str], str]) -> None:
        self._output = output / "nubes.log"
        self._lifeline = lifeline
        self._python = python

    def start(self, environment: str, module: str, control: socket.socket) -> subprocess.Popen[bytes]:
        """One that runs `module` of this package, with its end of a socket. Raises `NubesError` or `OSError`."""
        argv = [self._python(environment), "-P", "-m", f"nubes.drivers.local.{module}"]
        argv += [str(control.fileno()), self._lifeline]
        env = dict(os.environ)
        paths = env.pop("PYTHONPATH", "")
        if environment:  # sees its own packages alone; nubes is linked into it
            env["PATH"] = f"{Path(argv[0]).parent}{os.pathsep}{env.get('PATH', os.defpath)}"
        else:
            env["PYTHONPATH"] = os.pathsep.join(filter(None, [SOURCE, paths]))
        output = os.open(self._output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            return subprocess.Popen(
                argv, pass_fds=(control.fileno(),), stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env
            )
        finally:
            os.close(output)
