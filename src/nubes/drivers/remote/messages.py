"""What a control plane and its agents say to each other, and how an agent shows that it may join.

Over TCP, framed as everywhere (`nubes.drivers.local.wire`). The control plane begins with [CHALLENGE, nonce]; who
connects answers [JOIN, protocol, kind, proof, about], and is told [JOINED, machine] or [REFUSED, why, what to do]. From
there on frames to and from an agent are [LINK, frame of `nubes.kernel.link`], and beats, [BEAT, time] answered by
[HEARD, time]; a client's are those of the local socket.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable
from typing import Any

import msgspec

from nubes.drivers.local import wire
from nubes.functions import events as e
from nubes.functions.spec import FunctionSpec

PROTOCOL = 2
CHALLENGE, JOIN, JOINED, REFUSED, LINK, BEAT, HEARD = range(60, 67)
AGENT, CLIENT = "agent", "client"

BEAT_S = 1.0  # how often an agent says that it lives
LEASE_S = 6.0  # an agent that may not have been heard for so long ends its instances, and joins anew
LOST_S = 10.0  # a machine that has said nothing for so long is lost; later than its agent has given up


class About(msgspec.Struct, array_like=True):
    """A machine that joins."""

    incarnation: int
    name: str  # of the machine: two agents of one name are one that came back
    cpu: float
    memory_bytes: int
    zone: str = ""


class Surroundings(msgspec.Struct, array_like=True):
    """What an instance or a parent of a function needs to be started."""

    spec: FunctionSpec
    env: dict[str, str]
    volumes: dict[str, str]
    python: str  # the interpreter of its environment, where the control plane runs


class Do(msgspec.Struct, array_like=True, tag=True):
    """Control plane to agent: a command, with what it takes to start something."""

    command: e.StartInstance | e.StopInstance | e.Interrupt | e.GrowNode | e.PruneNode
    around: Surroundings | None = None
    prime: bool = False


class Run(msgspec.Struct, array_like=True, tag=True):
    """Control plane to agent: calls for an instance."""

    command: e.Dispatch
    keep: bool
    inputs: list[bytes]
    stay: tuple[int, ...] = ()  # calls whose output, if it is large, stays until it is known where their next step runs


class Files(msgspec.Struct, array_like=True, tag=True):
    """Control plane to agent: a function's files, by their path from its root."""

    function: str
    files: dict[str, bytes]
    error: str = ""  # why they cannot be had


class Fetch(msgspec.Struct, array_like=True, tag=True):
    """Control plane to agent: what stayed on your machine is needed elsewhere."""

    call: int
    data: bytes


class Forget(msgspec.Struct, array_like=True, tag=True):
    """Control plane to agent: what stayed on your machine is not needed any more."""

    data: bytes


class Bye(msgspec.Struct, array_like=True, tag=True):
    """Control plane to agent: nothing is left on your machine, go."""


class Happened(msgspec.Struct, array_like=True, tag=True):
    """Agent to control plane: an event."""

    event: e.InstanceLost | e.NodeReady | e.NodeLost


class Said(msgspec.Struct, array_like=True, tag=True):
    """Agent to control plane: a frame of an instance; `keep`: its large result was to outlive a crash."""

    instance: int
    frame: list[Any]
    keep: bool
    stayed_bytes: int = 0  # of what it gave, which waits there for the next step: the frame has its place only


class Fetched(msgspec.Struct, array_like=True, tag=True):
    """Agent to control plane: what had stayed on its machine."""

    call: int
    data: bytes


class Wants(msgspec.Struct, array_like=True, tag=True):
    """Agent to control plane: a function's files are not on this machine."""

    function: str


class Leaves(msgspec.Struct, array_like=True, tag=True):
    """Agent to control plane: this machine is to go."""


encode = msgspec.msgpack.Encoder().encode
order = msgspec.msgpack.Decoder(Do | Run | Files | Fetch | Forget | Bye).decode
news = msgspec.msgpack.Decoder(Happened | Said | Fetched | Wants | Leaves).decode
about = msgspec.msgpack.Decoder(About).decode


def linked(frames: Iterable[bytes]) -> bytes:
    """Frames of a link as they go over a connection."""
    return b"".join(wire.pack(LINK, frame) for frame in frames)


def incarnation() -> int:
    """A number that no other process, nor another life of this one, has drawn."""
    return int.from_bytes(os.urandom(7), "big") + 1


def beat(time_s: float) -> bytes:
    """An agent lives, at this time by its clock."""
    return wire.pack(BEAT, time_s)


def heard(time_s: float) -> bytes:
    """The answer to that."""
    return wire.pack(HEARD, time_s)


def proof(token: str, nonce: bytes, kind: str) -> bytes:
    """Shows that one knows the token, without saying it."""
    return hmac.new(token.encode(), nonce + kind.encode(), hashlib.sha256).digest()
