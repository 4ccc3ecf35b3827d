"""Finding what a command is about: `FILE.py::name` or `-m package.module::name`."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from nubes.api.cls import Cls
from nubes.api.function import Function
from nubes.app import App
from nubes.cli.errors import UserError
from nubes.drivers.local import loading
from nubes.functions.spec import Code
from nubes.kernel.errors import NotFound, UsageError
from nubes.signatures import KEYWORD, Parameter, Signature, of


class Entry(NamedTuple):
    """Something that can be run: an entrypoint here, or a function or method in the cloud."""

    app: App
    name: str
    signature: Signature
    here: Callable[..., Any] | None = None
    function: Function[Any, Any] | None = None
    cls: Cls | None = None


def load(text: str, as_module: bool) -> tuple[ModuleType, str]:
    """The module that `FILE[::name]` stands for, and the name. Whatever is wrong with it is said in one sentence."""
    where, _, name = text.partition("::")
    if as_module:
        return _import(where), name
    path = Path(where)
    if not path.is_file():
        if path.suffix != ".py" and importlib.util.find_spec(where.partition(".")[0]) is not None:
            raise UsageError(f"There is no file {where}.", f"For a module write `-m {where}`.")
        near = difflib.get_close_matches(path.name, [p.name for p in path.absolute().parent.glob("*.py")], 1)
        hint = f"Did you mean {path.with_name(near[0])}?" if near else "Give the path of a Python file."
        raise UsageError(f"There is no file {where}.", hint)
    sys.path.insert(0, str(path.absolute().parent))
    code = Code(str(path.absolute()), "__main__")
    return _guarded(lambda: loading.load_module(code), str(path)), name


def _import(name: str) -> ModuleType:
    sys.path.insert(0, os.getcwd())
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise UsageError(
            f"There is no module {name!r}.", "Write it as `package.module`, from the folder that holds the package."
        )
    return _guarded(lambda: importlib.import_module(name), name)


def _guarded(run: Callable[[], ModuleType], what: str) -> ModuleType:
    try:
        return run()
    except SyntaxError as error:
        line = (error.text or "").strip()
        place = f"{error.filename or what}, line {error.lineno}"
        raise UsageError(f"{place} is not valid Python ({error.msg}): `{line}`.", "Correct it and try again.") from None
    except ModuleNotFoundError as error:
        if error.name is None:
            raise UserError(error) from None
        package = error.name.partition(".")[0]
        hint = f"Install it here (`uv pip install {package}`), or import it within a function whose image has it."
        raise UsageError(f"{what} imports {error.name!r}, which is not installed.", hint) from None
    except UsageError:
        raise
    except BaseException as error:
        raise UserError(error) from None


def apps_in(module: ModuleType) -> list[App]:
    """The apps a module defines, each once."""
    return list({id(v): v for v in vars(module).values() if isinstance(v, App)}.values())


def the_app(module: ModuleType, name: str, what: str) -> App:
    """The app of that name (or variable), or the only one there is."""
    apps = apps_in(module)
    if not apps:
        raise UsageError(
            f"{what} defines no app.", 'Write `app = nubes.App("name")` and put @app.function() above a function.'
        )
    if name:
        named = vars(module).get(name)
        found = named if isinstance(named, App) else next((a for a in apps if a.name == name), None)
        if found is None:
            raise NotFound(f"{what} has no app {name!r}.", f"Its apps are: {', '.join(a.name for a in apps)}.")
        return found
    if len(apps) > 1:
        names = ", ".join(a.name for a in apps)
        raise UsageError(f"{what} defines several apps: {names}.", f"Say which: {what}::{apps[0].name}.")
    return apps[0]


def entries_in(module: ModuleType) -> dict[str, Entry]:
    """Everything that `nubes run` can run, by name; entrypoints first."""
    found: dict[str, Entry] = {}
    for app in apps_in(module):
        for name, here in app.entrypoints.items():
            found.setdefault(name, Entry(app, name, of(here), here=here))
    for app in apps_in(module):
        for name, made in app.functions.items():
            if isinstance(made, Cls):
                for method in made.spec.methods:
                    full = f"{name}.{method}"
                    found.setdefault(full, Entry(app, full, _of_method(made, method), cls=made))
            else:
                found.setdefault(name, Entry(app, name, of(made.__nubes_raw__), function=made))
    return found


def _of_method(cls: Cls, method: str) -> Signature:
    """The method's parameters, and the class's own as keywords."""
    signature = of(getattr(cls.__nubes_raw__, method), skip_self=True)
    hints = getattr(cls.__nubes_raw__, "__annotations__", {})
    builtin = {"int": int, "float": float, "str": str, "bool": bool}
    own = []
    for name in getattr(cls.__nubes_raw__, "__nubes_parameters__", ()):
        hint = hints.get(name, Any)
        own.append(Parameter(name, builtin.get(hint, Any) if isinstance(hint, str) else hint, False, None, KEYWORD))
    return Signature((*signature.parameters, *own), signature.returns, signature.about, signature.generator)


def the_entry(module: ModuleType, name: str, what: str) -> Entry:
    """The entry of that name; without one the only entrypoint, the one called main, or the only function."""
    entries = entries_in(module)
    if not entries:
        the_app(module, "", what)
        raise UsageError(
            f"{what} has nothing to run.", "Put @app.function() or @app.local_entrypoint() above a function."
        )
    if name:
        if name in entries:
            return entries[name]
        near = difflib.get_close_matches(name, entries, 3, 0.5)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"There are: {', '.join(entries)}."
        raise NotFound(f"{what} has no function {name!r}.", hint)
    starts = [entry for entry in entries.values() if entry.here is not None]
    if len(starts) == 1:
        return starts[0]
    if "main" in entries:
        return entries["main"]
    if len(entries) == 1:
        return next(iter(entries.values()))
    raise UsageError(
        f"{what} has several functions: {', '.join(entries)}.", f"Say which: {what}::{next(iter(entries))}."
    )
