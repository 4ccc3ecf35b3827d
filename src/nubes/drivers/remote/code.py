"""A function's files on their way to a machine that does not have them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec

from nubes.functions.spec import Code
from nubes.kernel.errors import UsageError

MOST_BYTES, MOST_FILES = 64 << 20, 5000
SKIPPED = {"__pycache__", "node_modules", "site-packages"}


def root(code: Code) -> Path:
    """The folder that a function's module is imported from."""
    folder = Path(code.file).parent
    return folder.parents[code.module.count(".") - 1] if "." in code.module else folder


def is_here(code: Code) -> bool:
    """Whether a function's file is on this machine, and is the one it was declared in."""
    if not code.file:
        return True
    try:
        return hashlib.sha256(Path(code.file).read_bytes()).hexdigest()[:16] == code.digest
    except OSError:
        return False


def files(code: Code) -> dict[str, bytes]:
    """The Python files beside and below a function's, by their path from its root. Raises `UsageError`."""
    base, found, size = root(code), {}, 0
    for folder, folders, names in os.walk(base):
        folders[:] = sorted(f for f in folders if f not in SKIPPED and not f.startswith("."))
        for name in sorted(names):
            if name.endswith(".py"):
                path = Path(folder, name)
                content = path.read_bytes()
                size += len(content)
                found[str(path.relative_to(base))] = content
                if size > MOST_BYTES or len(found) > MOST_FILES:
                    raise UsageError(
                        f"{base} holds more than {MOST_FILES} files or {MOST_BYTES >> 20} MiB of Python.",
                        "Keep an app in a folder of its own.",
                    )
    return found


def unpack(code: Code, found: dict[str, bytes], folder: Path) -> Code:
    """Puts files under `folder`, by their content, and returns where the function's code is now."""
    digest = hashlib.sha256()
    for name, content in sorted(found.items()):
        digest.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
    place = folder / digest.hexdigest()[:16]
    if not place.exists():
        new = folder / f".{place.name}-{os.getpid()}"
        for name, content in found.items():
            path = (new / name).resolve()
            if not path.is_relative_to(new.resolve()):
                raise UsageError(f"{name!r} does not stay in its folder.")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        try:
            new.rename(place)
        except OSError:
            pass  # another was first
    return moved(code, place)


def moved(code: Code, place: Path) -> Code:
    """The same code with its root at `place`."""
    return msgspec.structs.replace(code, file=str(place / Path(code.file).relative_to(root(code))))
