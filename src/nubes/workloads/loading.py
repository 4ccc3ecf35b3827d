"""Finds a workload by path or name, whatever its format."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nubes.kernel.errors import NotFound, UsageError

if TYPE_CHECKING:
    from nubes.workloads.recording import Recording
    from nubes.workloads.workload import Workload

T = TypeVar("T")

VARIABLE = "NUBES_TRACES"
FORMATS = "Azure Functions CSVs, iluvatar-faas CSVs, or the data folder of a nubes that ran"


def load(path_or_name: str | Path, seed: int = 0, **options: Any) -> Workload | Recording:
    """A workload from a folder, from a name below the folder that NUBES_TRACES names, or from a generator.

    `azure-functions-2019/500`, `./my-data`, `azure-like`, `poisson(functions=50,rate=2)`. A live nubes' data folder
    gives a `Recording`. `seed` draws what a trace does not hold; `options` go to the reader. Raises `NotFound` or
    `UsageError`.
    """
    from nubes.workloads.azure import is_azure, load_azure
    from nubes.workloads.iluvatar import is_iluvatar, load_iluvatar
    from nubes.workloads.recording import is_recording, load_recording
    from nubes.workloads.synthetic import GENERATORS

    text = str(path_or_name)
    generated = re.fullmatch(r"([a-z-]+)\s*(?:\((.*)\))?", text)
    if generated and generated[1] in GENERATORS and not Path(text).exists():
        return made(GENERATORS[generated[1]], generated[1], generated[2] or "", seed, options)
    folder = locate(text, GENERATORS)
    if folder.is_file() and folder.suffix == ".csv":
        folder = folder.parent
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder.", f"A workload is a folder: {FORMATS}.")
    name = text if not Path(text).exists() else "/".join(folder.resolve().parts[-2:])
    if is_iluvatar(folder):
        return load_iluvatar(folder, name)
    if is_azure(folder):
        return load_azure(folder, name, seed=seed, **options)
    if is_recording(folder):
        return load_recording(folder, name)
    raise UsageError(f"{folder} holds no workload that nubes can read.", f"It reads {FORMATS}.")


def locate(text: str, generators: Iterable[str]) -> Path:
    """The path itself, or below the folder of traces. Raises `NotFound`, naming what could be made up instead."""
    direct = Path(text).expanduser()
    if direct.exists():
        return direct
    traces = os.environ.get(VARIABLE)
    if traces and (Path(traces) / text).exists():
        return Path(traces) / text
    where = f"neither here nor in {traces}" if traces else f"not here, and {VARIABLE} names no folder of traces"
    raise NotFound(
        f"There is no workload {text!r}: {where}.", f"Name a folder, or make one up: {', '.join(generators)}."
    )


def made(make: Callable[..., T], name: str, arguments: str, seed: int, options: dict[str, Any]) -> T:
    """What `make` gives for arguments written `name=value, ...`. Raises `UsageError`."""
    given: dict[str, Any] = {"seed": seed, **options}
    for part in filter(None, (part.strip() for part in arguments.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise UsageError(f"{part!r} in {name}({arguments}) is no argument.", "Arguments are written name=value.")
        given[key] = _number(value)
    try:
        return make(**given)
    except TypeError as error:
        takes = ", ".join(inspect.signature(make).parameters)
        raise UsageError(f"{name}({arguments}): {error}.", f"It takes: {takes}.") from None


def _number(value: str) -> str | int | float:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            pass
    return value
