"""The user's code in a parent or an instance: finding it, and what a class of it wants run."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import pickle
import sys
from types import ModuleType
from typing import Any

from nubes import place
from nubes.functions.spec import Code

MAIN = "__nubes_main__"  # the name under which a user's script is imported


def import_packages(names: tuple[str, ...]) -> None:
    """Imports what can be imported; the function itself gets the error for what cannot."""
    for name in names:
        try:
            importlib.import_module(name)
        except Exception:
            continue


def load(code: Code) -> Any:
    """The object that `code` names: a function, or a class. Raises what its import raises."""
    place.enter()
    if code.pickled:
        return pickle.loads(code.pickled)
    target: Any = load_module(code)
    for part in code.qualname.split("."):
        target = getattr(target, part)
    return target


def load_module(code: Code) -> ModuleType:
    """Imports the user's module, a script under a name of its own (and as `__main__`, so that its classes unpickle)."""
    name = MAIN if code.module == "__main__" else code.module
    if name in sys.modules:
        return sys.modules[name]
    folder = os.path.dirname(code.file)
    root = folder
    for _ in range(name.count(".")):
        root = os.path.dirname(root)
    if root and root not in sys.path:
        sys.path.insert(0, root)
    if name != MAIN and "." in name:
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(name, code.file)
    if spec is None or spec.loader is None:
        return importlib.import_module(name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if name == MAIN:
        sys.modules["__main__"] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def raw(target: Any) -> Any:
    """What the user wrote, beneath the decorators of nubes."""
    return getattr(target, "__nubes_raw__", target)


def parameters(cls: type) -> bool:
    """Whether a class is constructed with parameters."""
    return bool(getattr(cls, "__nubes_parameters__", ()))


def run_hooks(target: Any, kind: str, snap: bool) -> None:
    """Runs the `enter` or `exit` hooks of an object; `snap`: those whose effect forks may share."""
    for name in dir(type(target)):
        method = getattr(type(target), name, None)
        hook = getattr(method, "__nubes_hook__", None)
        if hook == (kind, snap):
            result = getattr(target, name)()
            if inspect.iscoroutine(result):
                from nubes.drivers.local import tasks

                tasks.finish(result, alone=snap)  # forks must not share a loop


def asgi(factory: Any) -> Any:
    """The caller of the ASGI app that the user's function makes."""
    from nubes.gateway.bridge import asgi_caller

    return asgi_caller(factory())
