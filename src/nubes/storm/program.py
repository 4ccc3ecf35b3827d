"""A user's app as a program that many simulated processes run, each with module globals of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from nubes.app import App
from nubes.cli import target
from nubes.drivers.local.loading import MAIN
from nubes.functions.spec import FunctionSpec
from nubes.kernel.errors import UsageError
from nubes.storm import senses

EXAMPLE = (
    "Write @app.scenario above a function that does what a client does in a day, and @app.invariant above those "
    "that raise, or return a sentence, when something does not hold at its end."
)


class Program:
    """The file of an app. `load` gives a process its own copy of the user's modules, as an import there would."""

    def __init__(self, what: str) -> None:
        """`what` is FILE or FILE::APP. Raises `UsageError`, `NotFound`, or `UserError` with what its import raised."""
        module, name = target.load(what, as_module=False)
        self.file = Path(what.partition("::")[0]).absolute()
        self.code: CodeType = compile(self.file.read_bytes(), str(self.file), "exec")
        app = target.the_app(module, name, what.partition("::")[0])
        self.app = app.name
        if not app.scenarios or not app.invariants:
            missing = "scenario" if not app.scenarios else "invariant"
            raise UsageError(f"{self.file.name} has no @app.{missing}.", EXAMPLE)
        self.scenarios = tuple(app.scenarios)
        self.invariants = tuple(app.invariants)
        self.variables: dict[str, str] = {}
        self.specs: tuple[FunctionSpec, ...] = tuple(self._spec(one) for one in app.functions.values())
        os.environ.update(self.variables)
        self.beside = _beside(self.file.parent, {MAIN, "__main__"})

    def _spec(self, made: Any) -> FunctionSpec:
        """What is declared of a function, without its code: a process finds that in its own modules."""
        self.variables.update(made.spec.env)
        for secret in made.declared.secrets:
            values = getattr(secret, "_values", None)
            self.variables.update(values() if values is not None else dict.fromkeys(secret._required, "storm"))
        spec: FunctionSpec = made.spec
        return spec

    def load(self) -> tuple[App, dict[str, ModuleType]]:
        """The app and the modules of a new process. Raises what the user's module raises."""
        for name in self.beside:
            sys.modules.pop(name, None)  # files beside the app's are the user's, too
        module = ModuleType(MAIN)
        module.__file__ = str(self.file)
        sys.modules[MAIN] = sys.modules["__main__"] = module
        exec(self.code, module.__dict__)
        senses.dress(module)
        modules = {MAIN: module, "__main__": module}
        for name in self.beside or ():
            if name in sys.modules:
                modules[name] = sys.modules[name]
                senses.dress(modules[name])
        app = next(one for one in target.apps_in(module) if one.name == self.app)
        return app, modules


def _beside(folder: Path, besides: set[str]) -> tuple[str, ...]:
    """The names of modules that came from the app's folder, or below it."""
    inside = str(folder) + os.sep
    found = [
        name
        for name, module in list(sys.modules.items())
        if name not in besides and str(getattr(module, "__file__", None) or "").startswith(inside)
    ]
    return tuple(name for name in found if "site-packages" not in str(sys.modules[name].__file__))
