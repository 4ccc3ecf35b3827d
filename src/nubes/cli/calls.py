"""`nubes invoke` and `nubes call`."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Annotated, Any

import typer

from nubes import ids
from nubes.cli import output
from nubes.cli.errors import UserError
from nubes.cli.groups import Group
from nubes.cli.options import Data, Json, connect

group = typer.Typer(cls=Group, help="Calls that were spawned: their results, by id.", no_args_is_help=True)
CallId = Annotated[str, typer.Argument(metavar="CALL", help="A call's id, like fc-1x9k2m4p7qr3t.")]


def invoke(
    context: typer.Context,
    what: Annotated[str, typer.Argument(metavar="APP/FUNCTION", help="A deployed function, or APP/CLASS.METHOD.")],
    spawn: Annotated[bool, typer.Option("--spawn", help="Hand the call in, print its id, and do not wait.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Do not show what the function prints.")] = False,
    data: Data = None,
    json: Json = False,
) -> None:
    """Call a deployed function. Words after it are its arguments: values, --name value, or one JSON object or list.

    What a generator yields is printed as it comes, with --json each item on a line of its own.
    """
    from nubes.cli import arguments
    from nubes.client import find, printing

    client = connect(data)
    printing.printer = output.log_printer(quiet)
    target, generator = find(client, what)
    args, kwargs = arguments.loose(context.args)
    if spawn:
        call = ids.show(client.spawn(target, tuple(args), kwargs))
        if json:
            output.as_json({"call_id": call})
        else:
            print(call)
        return
    try:
        for item in _items(client.stream(target, tuple(args), kwargs), generator):
            _show(item, json)
    except (KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:
        raise UserError(error) from None


def _items(returned: Generator[Any, None, Any], generator: bool) -> Iterator[Any]:
    """What a call yields; if that is nothing, and it is no generator, the one value that it returns."""
    yielded = generator
    while True:
        try:
            item = next(returned)
        except StopIteration as end:
            if not yielded:
                yield end.value
            return
        yielded = True
        yield item


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
    terminate: Annotated[
        bool, typer.Option("--terminate", help="End its instance even if other calls run there.")
    ] = False,
    data: Data = None,
    json: Json = False,
) -> None:
    """Withdraw a call; if it runs, its instance ends, unless other calls run there."""
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
