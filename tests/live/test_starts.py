"""What a start shares with its parent in the tree, and what it must not."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import starts_app as app
from real import until

from nubes import client
from nubes.kernel.errors import InstanceDied

SLOW_STATES = ("ray",)


def turn(value: str) -> None:
    client.connect().ask("secret_put", name="turning", values={"STARTS_TOKEN": value}, allow_existing=True)


@pytest.fixture(scope="module", autouse=True)
def running(plane: Path) -> Iterator[None]:
    turn("first")
    with app.app.run():
        yield


def test_a_module_sees_its_functions_variables_while_it_is_imported() -> None:
    for _ in range(3):  # cold, and from a parent that was prepared
        assert app.colour.remote() == ("blue", "blue")
        assert app.colourless.remote() == ("", "")


def test_a_secret_that_changes_is_seen_by_the_next_import() -> None:
    for value in ("first", "second", "third"):
        turn(value)
        for _ in range(3):
            assert app.token.remote() == (value, value)


def test_fork_handlers_are_back_where_an_instance_forks() -> None:
    for _ in range(3):
        assert app.forks_beside_a_thread.remote() == (1, True)


def test_an_end_is_noticed_though_a_child_keeps_the_socket_open() -> None:
    began = time.monotonic()
    with pytest.raises(InstanceDied, match="code 7"):
        app.dies_but_its_child_lives.remote(7)
    assert time.monotonic() - began < 20, "it waited for the child"


def test_async_hooks_and_calls_share_one_loop() -> None:
    assert app.Loops().same.remote()
    assert app.ManyLoops().same.remote()


def collapses() -> bool:
    """Whether this kernel makes huge pages on request."""
    size = 4 << 20
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    start = libc.mmap(None, ctypes.c_size_t(size), 3, 0x22, -1, 0)
    ctypes.memset(start, 1, size)
    aligned = -(-start // (2 << 20)) * (2 << 20)
    return bool(libc.madvise(ctypes.c_void_p(aligned), ctypes.c_size_t(2 << 20), 25) == 0)


@pytest.mark.skipif(not collapses(), reason="this kernel has no MADV_COLLAPSE")
def test_large_parents_park_in_huge_pages_and_what_is_shared_stays_shared() -> None:
    program = """
import os
from nubes.drivers.local import hugepages
small = hugepages.collapse()
held = [bytes(200) for _ in range(300_000)]
large = hugepages.collapse()
read, write = os.pipe()
if os.fork() == 0:
    os.write(write, bytes([hugepages.collapse()]))
    os._exit(0)
print(small, large, os.read(read, 1)[0], held == [bytes(200)] * 300_000)
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert out[0] == "0"
    assert int(out[1]) > 10
    assert out[2:] == ["0", "True"]


def test_what_a_module_prints_while_it_is_imported_is_in_its_functions_log(
    plane: Path, tmp_path: Path, one_machine: None
) -> None:
    script = tmp_path / "says.py"
    script.write_text(
        "import nubes\napp = nubes.App('says')\nprint('imported here')\n"
        "@app.function(single_use=True)\ndef quiet(): return 1\n"
    )
    command = [sys.executable, "-m", "nubes.cli.main", "run", f"{script}::quiet"]
    for _ in range(2):
        subprocess.run(command, check=True, capture_output=True)
    assert until(lambda: "imported here" in (plane / "output" / "says.quiet.log").read_text())
