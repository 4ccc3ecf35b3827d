"""The control plane's end of machines, without any: connections are pairs of sockets, the agent is played by hand."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nubes.drivers.local import payload
from nubes.drivers.local.inputs import Inputs
from nubes.drivers.remote import listener, messages
from nubes.drivers.remote.agents import Agents
from nubes.functions import events as e
from nubes.kernel.errors import UsageError

ABOUT = messages.About(77, "east", 4.0, 1 << 30, "a")


def agents(loop: asyncio.AbstractEventLoop, fed: list[Any], folder: Path) -> Agents:
    segments = payload.Segments(str(folder))
    nothing: Any = lambda *_: None  # noqa: E731
    return Agents(loop, fed.append, nothing, nothing, lambda: False, segments, segments, None, nothing, Inputs(nothing))


def test_a_machine_that_was_given_up_does_not_come_back_as_if_nothing_had_been(tmp_path: Path) -> None:
    async def play() -> None:
        fed: list[Any] = []
        plane = agents(asyncio.get_running_loop(), fed, tmp_path)
        ends = [socket.socketpair() for _ in range(3)]
        plane.join(messages.encode(ABOUT), ends[0][0])
        plane.join(messages.encode(ABOUT), ends[1][0])  # its connection broke, and it is back
        assert fed == [e.MachineReady(4.0, 1 << 30, 1, "a")]
        plane.lost(1, "nothing was heard of it")
        with pytest.raises(UsageError, match="given up"):
            plane.join(messages.encode(ABOUT), ends[2][0])
        anew = messages.About(78, "east", 4.0, 1 << 30, "a")
        plane.join(messages.encode(anew), ends[2][0])
        assert [type(event) for event in fed] == [e.MachineReady, e.MachineLost, e.MachineReady]
        assert list(plane.members) == [2]
        plane.close()

    asyncio.run(play())


def test_a_payload_whose_segment_is_gone_stays_as_it_is(tmp_path: Path) -> None:
    data = payload.dumps(np.ones(100_000), payload.Segments(str(tmp_path)))
    assert payload.carried(data)[:1] == b"B"
    payload.discard(payload.segment_of(data))
    assert payload.carried(data) == data
    with pytest.raises(FileNotFoundError):
        payload.loads(data)


def test_what_is_carried_arrives_and_lands(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir(), there.mkdir()
    data = payload.dumps({"a": np.arange(50_000), "b": 1}, payload.Segments(str(here)))
    carried = payload.carried(data, last=True)
    assert not list(here.iterdir())
    np.testing.assert_array_equal(payload.loads(carried)["a"], np.arange(50_000))
    landed = payload.landed(carried, payload.Segments(str(there)))
    assert payload.segment_of(landed).startswith(str(there))
    value = payload.loads(landed)
    value["a"][0] = 9  # the reader's own
    assert payload.loads(landed)["a"][0] == 0


def test_nobody_gets_to_say_much_before_it_showed_that_it_may() -> None:
    async def play() -> None:
        loop = asyncio.get_running_loop()
        server = listener.bind("127.0.0.1:0")
        door = listener.Listener(loop, server, "secret", lambda *_: pytest.fail("it was let in"))
        with socket.create_connection(("127.0.0.1", door.port)) as stranger:
            stranger.setblocking(False)
            await listener.read(loop, stranger)
            await loop.sock_sendall(stranger, (1 << 30).to_bytes(4, "little") + b"x" * 1000)
            assert await asyncio.wait_for(_end(loop, stranger), 5)
        door.close()

    asyncio.run(play())


async def _end(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> bool:
    """Whether the other side hung up, having said nothing."""
    try:
        return await loop.sock_recv(sock, 100) == b""
    except ConnectionResetError:
        return True
