"""Options that many commands share, and what they stand for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nubes import config

if TYPE_CHECKING:
    from nubes.client import Client

Data = Annotated[str | None, typer.Option("--data", help="The data folder; else what `nubes config show` says.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Trailing = Annotated[typer.Context, typer.Argument(hidden=True)]


def settle(**flags: Any) -> dict[str, config.Value]:
    """The settings with these flags, handed on to everything this process imports or starts."""
    values = config.resolve({name.replace("_", "-"): value for name, value in flags.items()})
    config.export(values)
    os.environ["NUBES_DATA"] = values["data"].value
    return values


def folder(data: str | None) -> Path:
    return Path(settle(data=data)["data"].value)


def connect(data: str | None, start: bool = False) -> Client:
    """The control plane's client. Raises `Unavailable` if none runs and none may be started."""
    settle(data=data)
    from nubes import client

    return client.connect(start=start)
