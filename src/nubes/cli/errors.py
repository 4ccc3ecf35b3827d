"""How commands end: exit codes, and errors in plain words."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

from nubes.kernel.errors import FunctionExited, NubesError

INTERRUPTED = 130
BROKEN_PIPE = 141


class UserError(Exception):
    """The user's own code raised `error`, here."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


class Exit(Exception):
    """Ends the command with a code; whatever was to be said has been said."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def exit_code_of(command: Callable[[], int]) -> int:
    """Runs a command: 0 well, 1 failed, 2 wrong usage, 75 try again, 124 timed out, 130 interrupted, 137 killed.

    A user program's own code passes through.
    """
    try:
        code = command()
        sys.stdout.flush()
        return code
    except Exit as end:
        return end.code
    except UserError as end:
        return _of_user(end.error)
    except NubesError as error:
        return _of_nubes(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that the interpreter's own flush at exit is quiet
        return BROKEN_PIPE
    except Exception as error:
        if hasattr(error, "format_message"):  # the command line itself is wrong
            return _of_usage(error)
        return _of_user(error)


def say(text: str) -> None:
    """One line on standard error."""
    label = "nubes:"
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        label = f"\033[31m{label}\033[0m"
    print(label, text, file=sys.stderr, flush=True)


def _of_nubes(error: NubesError) -> int:
    remote = _remote(error)
    if remote and not isinstance(error, FunctionExited):
        print(remote.rstrip(), file=sys.stderr, flush=True)
        return 1
    say(str(error))
    return error.exit_code


def _of_user(error: BaseException) -> int:
    """What a user's code, here or there, ended with."""
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        print(error.code, file=sys.stderr)
        return 1
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, NubesError):
        return _of_nubes(error)
    remote = _remote(error)
    print(remote.rstrip() if remote else _own_frames(error), file=sys.stderr, flush=True)
    return 1


def _remote(error: BaseException) -> str:
    """The traceback from where a function ran, if the error came from there."""
    return str(getattr(error.__cause__, "text", ""))


def _own_frames(error: BaseException) -> str:
    """A traceback that starts where the user's code does."""
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    frames = traceback.extract_tb(error.__traceback__)
    first = next((n for n, f in enumerate(frames) if not f.filename.startswith((here, "<frozen importlib"))), 0)
    shown = traceback.TracebackException.from_exception(error)
    shown.stack = traceback.StackSummary.from_list(frames[first:])
    return "".join(shown.format()).rstrip()


def _of_usage(error: Exception) -> int:
    name = type(error).__name__
    if name == "NoArgsIsHelpError":
        print(getattr(error, "message", ""))
        return 2
    context = getattr(error, "ctx", None)
    message = str(getattr(error, "format_message", error.__str__)())
    say(message + (f" See `{context.command_path} --help`." if context is not None else ""))
    return int(getattr(error, "exit_code", 2))
