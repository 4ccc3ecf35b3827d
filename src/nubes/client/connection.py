"""What a call is for, and one blocking connection to a control plane."""

from __future__ import annotations

import os
import socket
from typing import Any

import msgspec

from nubes import ids
from nubes.client.outcomes import LOST, START_AGAIN
from nubes.client.printing import show
from nubes.drivers.local import wire
from nubes.kernel import errors
from nubes.kernel.errors import NubesError, Unavailable


class Target(msgspec.Struct, frozen=True):
    """What a call is for: a function, or a method of a class's instances with the parameters in `variant`.

    Calls with the same `key` are one call; `route` names the functions that its result is handed on to.
    """

    function: str
    method: str = ""
    variant: str = ""
    key: str = ""
    route: tuple[str, ...] = ()

    def request(self, call: int, keep: bool, data: bytes) -> bytes:
        """The frame that makes the call, with its arguments; with `keep` it is accepted for good."""
        return wire.pack(wire.CALL, call, self.function, self.method, self.variant, keep, self.key, self.route, data)


class Connection:
    """A blocking connection, used by one thread at a time."""

    def __init__(self, path: str) -> None:
        self.stream = wire.SocketStream(open_socket(path))
        self.send(wire.pack(wire.HELLO, 1))
        _, self.protocol, self.shared, self.folder, self.pid, self.objects = self.recv()

    def send(self, data: bytes) -> None:
        """Sends frames. Raises `Unavailable` if the control plane is gone."""
        try:
            self.stream.send(data)
        except ConnectionError:
            raise Unavailable(LOST, START_AGAIN) from None

    def recv(self) -> list[Any]:
        """The next frame. Raises `Unavailable` if the control plane is gone."""
        try:
            return self.stream.recv()
        except ConnectionError:
            raise Unavailable(LOST, START_AGAIN) from None

    def wait(self, number: int, *kinds: int) -> list[Any]:
        """The next frame of one of these kinds about a call or question; shows what is printed until it comes."""
        while True:
            frame = self.recv()
            if frame[1] == number and frame[0] in kinds:
                return frame
            show(frame)

    def put(self, name: str, arguments: dict[str, Any]) -> list[Any]:
        """Puts a question to the control plane (see `nubes.drivers.local.asks`); the frame with its answer."""
        number = ids.new()
        self.send(wire.pack(wire.ASK, number, name, arguments))
        return self.wait(number, wire.ANSWER)

    def ask(self, name: str, arguments: dict[str, Any]) -> Any:
        """Asks the control plane `name`; raises the error it answers with."""
        return answered(self.put(name, arguments))

    def close(self) -> None:
        """Ends the connection: what it asked for is cancelled, and the ephemeral apps it brought go."""
        self.stream.close()


def answered(frame: list[Any]) -> Any:
    """The answer in an ANSWER frame; raises the error it stands for."""
    _, _, failed, answer = frame
    if failed:
        kind = getattr(errors, failed, NubesError)
        raise kind(*answer)
    return answer


def open_socket(path: str) -> socket.socket:
    """A socket connected to a control plane's. Raises `Unavailable`."""
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
