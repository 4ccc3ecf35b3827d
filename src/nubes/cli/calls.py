"""`nubes invoke` and `nubes call`."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nubes import ids
from nubes.cli import output
from nubes.cli.errors import UserError
from nubes.cli.options import Data, Json, connect
from nubes.kernel.errors import NotFound

if TYPE_CHECKING:
    from nubes.client import Client, Target

group = typer.Typer(help="Calls that were spawned: their results, by id.", no_args_is_help=True)
CallId = Annotated[str, typer.Argument(metavar="CALL", help="A call's id, like fc-1x9k2m4p7qr3t.")]


def invoke(
    context: typer.Context,
    what: Annotated[str, typer.Argument(metavar="APP/FUNCTION", help="A deployed function, or APP/CLASS.METHOD.")],
    spawn: Annotated[bool, typer.Option("--spawn", help="Hand the call in and print its id.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Do not show what the function prints.")] = False,
    data: Data = None,
    json: Json = False,
) -> None:
    """Call a deployed function. Words after it are its arguments: values, --name value, or one JSON object or list."""
    from nubes.cli import arguments
    from nubes.client import printing

    client = connect(data)
    printing.printer = output.log_printer(quiet)
    target, generator = _find(client, what)
    args, kwargs = arguments.loose(context.args)
    if spawn:
        call = ids.show(client.spawn(target, tuple(args), kwargs))
        if json:
            output.as_json({"call_id": call})
        else:
            print(call)
        return
    try:
        if generator:
            for item in client.stream(target, tuple(args), kwargs):
                _show(item, json)
        else:
            _show(client.remote(target, tuple(args), kwargs), json)
    except (KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:
        raise UserError(error) from None


def _find(client: Client, what: str) -> tuple[Target, bool]:
    """What to call, and whether it is a generator. Raises `NotFound` with the nearest names."""
    from nubes.client import Target

    known: dict[str, tuple[Target, bool]] = {}
    for f in client.ask("functions"):
        if f["kind"] == "class":
            known.update({f"{f['name']}.{method}": (Target(f["name"], method), False) for method in f["methods"]})
        else:
            known[f["name"]] = (Target(f["name"]), f["generator"])
    if what in known:
        return known[what]
    near = difflib.get_close_matches(what, known, 3, 0.5)
    there = f"There are: {', '.join(known)}." if known else "Deploy an app first: `nubes deploy app.py`."
    raise NotFound(f"No function {what!r} is deployed.", f"Did you mean {' or '.join(near)}?" if near else there)


def _show(value: Any, json: bool) -> None:
    from nubes.cli.run import _json

    if json:
        print(_json(value), flush=True)
    elif value is not None:
        print(value, flush=True)


@group.command()
def get(
    call: CallId,
    timeout: Annotated[str | None, typer.Option(help='How long to wait, e.g. "30s"; 0 only looks.')] = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Print the result of a call; wait for it if need be."""
    from nubes.kernel.units import seconds

    number = ids.parse(call)
    limit = None if timeout is None else 0.0 if timeout == "0" else seconds(timeout, "timeout")
    client = connect(data)
    try:
        value = client.fetch(number, limit)
    except (KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:
        raise UserError(error) from None
    _show(value, json)


@group.command()
def cancel(
    call: CallId,
    terminate: Annotated[bool, typer.Option(help="Also end the instance that runs it.")] = False,
    data: Data = None,
    json: Json = False,
) -> None:
    """Withdraw a call."""
    number = ids.parse(call)
    connect(data).cancel(number, terminate)
    if json:
        output.as_json({"call_id": call})
    else:
        print(f"{call} is cancelled.")


@group.command("list")
def list_(data: Data = None, json: Json = False) -> None:
    """The calls that have not ended yet."""
    calls = connect(data).ask("status")["calls"]
    for one in calls:
        one["id"] = ids.show(one["id"])
    if json:
        output.as_json(calls)
    else:
        rows = ((c["id"], c["function"].partition("#")[0], c["state"], f"{c['age_s']:.1f} s") for c in calls)
        output.table("", ("call", "function", "state", "age"), rows)
