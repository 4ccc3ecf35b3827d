"""One connection to a control plane, and what a call is for."""

from __future__ import annotations

import itertools
import os
import socket
from typing import Any

from nubes.client.printing import show
from nubes.drivers.local import wire
from nubes.kernel import errors
from nubes.kernel.errors import NubesError, Unavailable

numbers = itertools.count(1)  # of questions asked


class Target:
    """What a call is for."""

    __slots__ = ("function", "key", "method", "variant")

    def __init__(self, function: str, method: str = "", variant: str = "", key: str = "") -> None:
        self.function = function
        self.method = method
        self.variant = variant
        self.key = key


class Connection:
    """A blocking connection, used by one thread at a time."""

    def __init__(self, path: str) -> None:
        self.stream = wire.Stream(open_socket(path))
        self.stream.send(wire.pack(wire.HELLO, 1))
        _, self.protocol, self.shared, self.folder, self.pid = self.stream.recv()

    def ask(self, name: str, arguments: dict[str, Any]) -> Any:
        number = next(numbers)
        self.stream.send(wire.pack(wire.ASK, number, name, arguments))
        while True:
            frame = self.stream.recv()
            if frame[0] == wire.ANSWER and frame[1] == number:
                return answered(frame)
            show(frame)


def answered(frame: list[Any]) -> Any:
    """The answer in an ANSWER frame; raises the error it stands for."""
    _, _, failed, answer = frame
    if failed:
        kind = getattr(errors, failed, NubesError)
        raise kind(*answer)
    return answer


def open_socket(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    try:
        if len(path) < 100:
            sock.connect(path)
        else:
            folder = os.open(os.path.dirname(path), os.O_RDONLY)
            try:
                sock.connect(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
            finally:
                os.close(folder)
    except OSError as error:
        sock.close()
        raise Unavailable(
            f"No control plane answers at {path} ({error.strerror}).", "Start one with `nubes up`."
        ) from None
    return sock
