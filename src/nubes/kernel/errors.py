"""Errors that say what went wrong and what to do next."""

from __future__ import annotations


class NubesError(Exception):
    """Base of every error nubes raises itself. `hint` is the next step, in one sentence."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.message, self.hint)


class UsageError(NubesError):
    """The user's declaration, argument or command is wrong."""

    exit_code = 2


class NotFound(NubesError):
    """A name that nothing answers to."""

    exit_code = 2


class UnknownPolicy(NotFound):
    """No policy of that name stands at that seam."""


class LogCorrupt(NubesError):
    """The log is damaged in a way that cannot be passed over silently."""


class AlreadyRunning(NubesError):
    """Another control plane owns this data folder."""


class Unavailable(NubesError):
    """No control plane answers, or it has no capacity left; try again."""

    exit_code = 75


class Overloaded(Unavailable):
    """The queue is full: the work was not accepted and nothing was lost."""


class CallFailed(NubesError):
    """A call ended without a result of its own: its instance died, its control plane went away."""


class CallTimeout(CallFailed, TimeoutError):
    """The call ran, or was waited for, longer than allowed."""

    exit_code = 124


class CallCancelled(CallFailed):
    """The call was cancelled before it finished."""

    exit_code = 130


class InstanceDied(CallFailed):
    """The process that ran the call ended: killed, out of memory, or exited by itself."""

    exit_code = 137


class RemoteError(CallFailed):
    """The function raised something that could not be shipped back as itself."""


class FunctionExited(RemoteError):
    """The function called `sys.exit`; `exit_code` is what a program that ends so exits with."""

    def __init__(self, message: str, hint: str = "", exit_code: int = 1) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.message, self.hint, self.exit_code)
