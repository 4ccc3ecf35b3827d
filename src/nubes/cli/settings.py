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
        output.as_json(
            {
                s.name: {"value": config.shown(s, values[s.name].value), "source": values[s.name].source}
                for s in config.SETTINGS
            }
        )
        return
    output.table("", ("setting", "value", "set by", "about"), (
        (s.name, config.shown(s, v.value) if v.value != "" else "-", v.source, s.about)
        for s, v in ((s, values[s.name]) for s in config.SETTINGS)
    ))  # fmt: skip
    print(f"Files: [tool.nubes] in pyproject.toml, then {config.user_file()}; then NUBES_* and flags.")
