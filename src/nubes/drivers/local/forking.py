"""Forks of a parent: cheap ones, and what two of them must not share.

Every page that a child writes is copied then, and a reference count is a write, so that the code which runs after a
fork costs more by what it touches than by what it does.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable
from typing import Any

# Their handlers mend what other threads may have held when the fork came; a parent has no other threads.
_OF_THREADS = ("threading", "logging")

_Handlers = list[Callable[[], Any]]
_lists: list[_Handlers] = []  # the interpreter's own: before a fork, after it in the parent, and in the child
_taken: list[_Handlers] = [[], [], []]  # what was taken out of each
_parent = 0


def without_handlers() -> None:
    """Leaves such handlers out of the forks of this process, which has one thread, from here on.

    They come back before the first fork of a child, which may have threads by then.
    """
    global _parent
    if not _lists:
        _find_lists()
    _parent = os.getpid()
    for handlers, taken in zip(_lists, _taken, strict=False):
        taken += [one for one in handlers if getattr(one, "__module__", "") in _OF_THREADS]
        handlers[:] = [one for one in handlers if one not in taken]


def _find_lists() -> None:
    """There is no call that takes a handler out again, so this looks for the lists that a new one is in."""
    for when in ("before", "after_in_parent", "after_in_child"):

        def mark() -> None: ...

        os.register_at_fork(**{when: mark})
        for one in gc.get_referrers(mark):
            if type(one) is list:
                one.remove(mark)
                _lists.append(one)
    os.register_at_fork(before=_put_back)


def _put_back() -> None:
    before = _taken[0].copy()
    if before and os.getpid() != _parent:
        for handlers, taken in zip(_lists, _taken, strict=True):
            handlers += taken
            taken.clear()
        for handler in reversed(before):  # this fork goes by the list as it was
            handler()


def fork() -> int:
    """As `os.fork`, but waits a moment where the machine is out of processes."""
    for attempt in range(5):
        try:
            return os.fork()
        except BlockingIOError:
            time.sleep(0.01 * 2**attempt)
    return os.fork()


def reseed() -> None:
    """In a child: draws other random numbers than its siblings. (Python's own generator sees to itself.)"""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed(int.from_bytes(os.urandom(4), "big"))
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "default_generator"):
        torch.default_generator.manual_seed(int.from_bytes(os.urandom(7), "big"))
