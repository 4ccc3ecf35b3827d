"""Where a function's code is, and which packages it asks for: read from its source, never by importing it."""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import sys
from typing import Any

import cloudpickle

from nubes.functions.spec import Code


def code_of(raw: Any, serialized: bool) -> Code:
    """By reference if the function stands in a file that an instance can import, else by value."""
    module = sys.modules.get(raw.__module__)
    file = getattr(module, "__file__", None)
    imports = _imports(raw, file)
    local = "<locals>" in raw.__qualname__ or raw.__name__ == "<lambda>"
    if serialized or local or file is None or not os.path.exists(file):
        pickled = cloudpickle.dumps(raw)
        return Code(pickled=pickled, imports=imports, digest=hashlib.sha256(pickled).hexdigest()[:16])
    with open(file, "rb") as source:
        digest = hashlib.sha256(source.read()).hexdigest()[:16]
    module_name = "__main__" if raw.__module__ in ("__main__", "__nubes_main__") else raw.__module__
    return Code(os.path.abspath(file), module_name, raw.__qualname__, imports=imports, digest=digest)


@functools.lru_cache(maxsize=256)
def _module_imports(file: str, stamp: float) -> tuple[frozenset[str], dict[str, frozenset[str]]]:
    """The packages a file imports at its top, and those each of its top-level functions and classes imports within."""
    try:
        with open(file, "rb") as source:
            tree = ast.parse(source.read())
    except (OSError, SyntaxError, ValueError):
        return frozenset(), {}
    inner: dict[str, frozenset[str]] = {}
    top: set[str] = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            inner[node.name] = frozenset().union(*(_names(child) for child in ast.walk(node)))
        elif not _never_runs(node):
            for child in ast.walk(node):
                top |= _names(child)
    return frozenset(top), inner


def _never_runs(node: ast.stmt) -> bool:
    """Blocks for type checkers, and for running the file as a program, which an instance passes over."""
    if not isinstance(node, ast.If) or node.orelse:
        return False
    asked = {getattr(child, "id", getattr(child, "attr", "")) for child in ast.walk(node.test)}
    return bool(asked & {"TYPE_CHECKING", "__name__"})


def _names(node: ast.AST) -> frozenset[str]:
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        names = [node.module]
    else:
        return frozenset()
    skipped = sys.stdlib_module_names | {"nubes"}
    return frozenset(name for name in names if name.partition(".")[0] not in skipped)


def _imports(raw: Any, file: str | None) -> tuple[str, ...]:
    """The packages a function asks for, read from its source: what its parents in the process tree may hold."""
    if file is None or not os.path.exists(file):
        return ()
    top, inner = _module_imports(file, os.path.getmtime(file))
    own = inner.get(raw.__qualname__.partition(".")[0], frozenset())
    folder = os.path.dirname(os.path.abspath(file))

    def beside(name: str) -> bool:
        """Modules next to the user's file are the function's own code, not packages."""
        head = os.path.join(folder, name.partition(".")[0])
        return os.path.exists(head + ".py") or os.path.isdir(head)

    return tuple(sorted(name for name in top | own if not beside(name)))
