"""`nubes config`."""

from __future__ import annotations

import typer

from nubes import config
from nubes.cli import output
from nubes.cli.groups import Group
from nubes.cli.options import Data, Json

group = typer.Typer(cls=Group, help="Settings, and where each comes from.", no_args_is_help=True)


@group.command()
def show(data: Data = None, json: Json = False) -> None:
    """Every setting, its value, and what set it."""
    values = config.resolve({"data": data})
    if json:
        output.as_json({name: {"value": v.value, "source": v.source} for name, v in values.items()})
        return
    output.table("", ("setting", "value", "set by", "about"), (
        (s.name, values[s.name].value if values[s.name].value != "" else "-", values[s.name].source, s.about)
        for s in config.SETTINGS
    ))  # fmt: skip
    print(f"Files: [tool.nubes] in pyproject.toml, then {config.user_file()}; then NUBES_* and flags.")
