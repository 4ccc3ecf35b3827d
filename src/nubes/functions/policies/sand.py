"""SAND: an application is one sandbox; each of its functions a process in it that forks once for every event.

The sandbox is the environment the application runs in; its grain processes stand below one bare interpreter there.
"""

from __future__ import annotations

from nubes.functions.policies.seuss import Seuss
from nubes.functions.seams import FunctionView, KeepAlive, Window
from nubes.kernel.policy import Paper, policy

PAPER = Paper("sand", "SAND", "SAND: Towards High-Performance Serverless Computing", "USENIX ATC 2018")
AT_ONCE = Window(0.0, 0.0)


@policy("sand", paper=PAPER)
class Sand(Seuss):
    """One grain process per function, with its code and libraries loaded; every start forks it."""

    prime = False


@policy("sand", paper=PAPER)
class NoIdle(KeepAlive):
    """Instances end with the event they were forked for, so that no memory stays idle.

    A call that already waits when an instance finishes still gets it; functions declared `single_use` rule that out
    too.
    """

    def window(self, f: FunctionView, now: float) -> Window:
        return AT_ONCE
