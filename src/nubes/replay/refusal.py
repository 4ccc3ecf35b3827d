"""A policy decides on what it is shown and nothing else. What touches the world is refused, by name.

Twice: the file is read before any of it runs, with aliases followed to what they stand for; and while the policy runs,
the same doors are closed.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nubes.kernel.errors import UsageError

CLOCK, NETWORK, FILES, RANDOM, CODE = (
    "the clock",
    "the network",
    "files or processes",
    "global randomness",
    "hidden code",
)
REFUSED = {  # names, with everything below them
    CLOCK: "time datetime.datetime.now datetime.datetime.today datetime.datetime.utcnow datetime.date.today",
    NETWORK: "socket socketserver ssl http urllib.request urllib3 requests httpx httpx2 aiohttp asyncio websockets "
    "ftplib smtplib select selectors",
    FILES: "open io os posix pathlib shutil tempfile glob fileinput sqlite3 subprocess multiprocessing threading "
    "concurrent signal ctypes mmap input logging pickle shelve",
    RANDOM: "random secrets uuid numpy.random",
    CODE: "exec eval compile __import__ __builtins__ builtins importlib runpy sys gc globals",
}
SEEDED = ("random.Random", "numpy.random.default_rng", "numpy.random.Generator", "numpy.random.PCG64")  # with a seed
INSTEAD = {
    CLOCK: "A policy is told the time: use `now`.",
    NETWORK: "A policy decides on its view alone.",
    FILES: "A policy keeps what it learns in its own attributes.",
    RANDOM: "Make a generator of your own with a seed: nubes.kernel.rng.rng(0, name).",
    CODE: "Write out what the policy does.",
}


class PolicyRefused(UsageError):
    """The policy does something that a policy may not do."""


def check(path: Path) -> ast.Module:
    """Reads a policy's file. Raises `PolicyRefused` naming the line and what it touches, `UsageError` on bad syntax."""
    try:
        tree = ast.parse(path.read_text("utf-8"), str(path))
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}.", "Name a Python file with a policy in it."
        ) from None
    except SyntaxError as error:
        raise UsageError(f"{path.name}:{error.lineno} is not Python: {error.msg}.", "Correct that line.") from None
    names = _aliases(tree)
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    seeded = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call) and (node.args or node.keywords)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            what = _refused(node.module or "")
            if what:
                _refuse(path, node.lineno, f"everything of {node.module}", what)
        if not isinstance(node, (ast.Name, ast.Attribute)) or id(node) in inner:
            continue
        for name in _meanings(node, names):
            what = _refused(name)
            if what and not (name in SEEDED and id(node) in seeded):
                _refuse(path, node.lineno, name, what)
    return tree


def _refuse(path: Path, line: int, name: str, what: str) -> None:
    raise PolicyRefused(f"{path.name}:{line} touches {what}: {name}.", INSTEAD[what])


def _refused(name: str) -> str:
    """What kind of thing a full name stands for, if it is refused. Its parents count: `time` refuses `time.sleep`."""
    parts = name.split(".")
    above = {".".join(parts[: n + 1]) for n in range(len(parts))}
    return next((kind for kind, names in REFUSED.items() if above & set(names.split())), "")


def _aliases(tree: ast.Module) -> dict[str, set[str]]:
    """Every name in the file -> the full names it may stand for, through imports and plain assignments."""
    names: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                full = alias.name if alias.asname else alias.name.partition(".")[0]
                names.setdefault(alias.asname or full, set()).add(full)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                names.setdefault(alias.asname or alias.name, set()).add(f"{node.module}.{alias.name}")
    assigned = [
        node for node in ast.walk(tree) if isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr)) and node.value
    ]
    for _ in range(len(assigned) + 1):  # until nothing new is found: an alias of an alias of ...
        before = sum(map(len, names.values()))
        for node in assigned:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name) and isinstance(node.value, (ast.Name, ast.Attribute)):
                    names.setdefault(target.id, set()).update(_meanings(node.value, names) - {target.id})
        if sum(map(len, names.values())) == before:
            break
    return names


def _meanings(node: ast.expr, names: dict[str, set[str]]) -> set[str]:
    """The full names an expression like `a.b.c` may stand for."""
    if isinstance(node, ast.Name):
        if node.id in names:
            return set(names[node.id])
        return {node.id} if hasattr(builtins, node.id) or node.id == "__builtins__" else set()
    if isinstance(node, ast.Attribute):
        return {f"{name}.{node.attr}" for name in _meanings(node.value, names)}
    return set()


class Guard:
    """Closes the doors while a policy runs. `with guard.shut(): ...`; what was tried is raised at the end."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.tried: PolicyRefused | None = None
        self._doors = [(module, name, getattr(module, name)) for module, name in _doors()]
        self._closed = [self._stub(f"{module.__name__}.{name}") for module, name, _ in self._doors]

    def _stub(self, name: str) -> Callable[..., Any]:
        name = name.removeprefix("builtins.")
        what = _refused(name)

        def refuse(*_: Any, **__: Any) -> Any:
            self.tried = PolicyRefused(f"{self.file} touches {what} while it decides: {name}.", INSTEAD[what])
            raise self.tried

        return refuse

    @contextmanager
    def shut(self) -> Iterator[None]:
        """Within, every door raises; afterwards so does this, if one was tried and the policy hid it."""
        for (module, name, _), stub in zip(self._doors, self._closed, strict=True):
            setattr(module, name, stub)
        try:
            yield
        finally:
            self._open()
        if self.tried is not None:
            raise self.tried

    def outside(self, function: Callable[..., None]) -> Callable[..., None]:
        """The same function, for which the doors are open."""

        def call(*args: Any) -> None:
            self._open()
            try:
                function(*args)
            finally:
                for (module, name, _), stub in zip(self._doors, self._closed, strict=True):
                    setattr(module, name, stub)

        return call

    def _open(self) -> None:
        for module, name, original in self._doors:
            setattr(module, name, original)


def _doors() -> list[tuple[Any, str]]:
    """(module, function) of what is closed: clocks, sockets, files, and the generator that everybody shares."""
    shared = (n for n, value in vars(random).items() if isinstance(getattr(value, "__self__", None), random.Random))
    doors = {
        builtins: "open input",
        os: "urandom open system",
        socket: "socket create_connection getaddrinfo",
        time: "time time_ns monotonic monotonic_ns perf_counter perf_counter_ns process_time sleep",
        random: " ".join(shared),
        importlib.import_module("numpy.random"): "random rand randn randint choice uniform normal seed",
    }
    return [(module, name) for module, names in doors.items() for name in names.split()]
