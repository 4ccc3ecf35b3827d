"""All commands, in the order in which `nubes --help` shows them."""

from __future__ import annotations

from typing import Annotated

import typer

from nubes.cli import (
    apps,
    bundles,
    calls,
    chaos,
    chat,
    coldstart,
    logs,
    machines,
    plans,
    policies,
    replays,
    run,
    server,
    settings,
    status,
    storm,
)
from nubes.cli.errors import Exit
from nubes.cli.groups import Group

PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}  # words that are not ours are the function's

app = typer.Typer(
    name="nubes",
    cls=Group,
    help="A cloud for ML and data work that you run yourself.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from nubes import __version__

        print(f"nubes {__version__}")
        raise Exit(0)


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """A cloud for ML and data work that you run yourself."""


app.command()(server.up)
app.command()(server.down)
app.command()(machines.join)
app.command(context_settings=PASSED_ON, add_help_option=False)(run.run)
app.command()(run.deploy)
app.command()(status.ps)
app.command()(logs.logs)
app.command()(apps.stop)
app.command(context_settings=PASSED_ON)(calls.invoke)
app.command()(chat.chat)
app.command()(replays.replay)
app.command()(replays.why)
app.command()(bundles.bundle)
app.command("open")(bundles.open_bundle)
app.command("try")(replays.try_policy)
app.command()(storm.storm)
app.command()(replays.papers)
app.command()(replays.reproduce)
app.command()(chaos.chaos)
app.add_typer(calls.group, name="call")
app.add_typer(apps.group, name="app")
app.add_typer(chat.group, name="llm")
app.add_typer(policies.group, name="policy")
app.add_typer(machines.group, name="machine")
app.add_typer(plans.group, name="plan")
app.add_typer(coldstart.group, name="coldstart")
app.add_typer(settings.group, name="config")
