"""`nubes run` and `nubes deploy`."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nubes.cli import output
from nubes.cli.errors import UserError
from nubes.cli.options import Data, Json, connect, settle
from nubes.kernel.errors import UsageError

if TYPE_CHECKING:
    from nubes.cli.target import Entry

What = Annotated[
    str,
    typer.Argument(
        metavar="FILE[::NAME]",
        help="A Python file, and in it a function, CLASS.METHOD or entrypoint: else the only one.",
    ),
]
AppOf = Annotated[
    str, typer.Argument(metavar="FILE[::APP]", help="A Python file, and in it an app: else the only one.")
]
AsModule = Annotated[bool, typer.Option("-m", "--module", help="FILE is a module like package.module.")]


def run(
    context: typer.Context,
    what: What = "",
    as_module: AsModule = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Do not show what functions print.")] = False,
    write_result: Annotated[
        Path | None, typer.Option("-w", "--write-result", help="Write the result to this file.")
    ] = None,
    detach: Annotated[
        bool, typer.Option("-d", "--detach", help="Hand the call in and return; needs a running `nubes up`.")
    ] = False,
    data: Data = None,
    json: Json = False,
) -> None:
    """Run a function or an entrypoint with the words after it as arguments; no server is needed.

    `nubes run FILE::NAME --help` shows its arguments. What it gives to sys.exit is the exit code.
    """
    asks_help = {"--help", "-h"} & set(context.args)
    if not what or {what} & {"--help", "-h"}:
        if not what and not asks_help:
            raise UsageError("There is nothing to run.", "Write `nubes run FILE.py`, or `nubes run FILE.py::function`.")
        print(context.get_help())
        return
    settle(data=data)
    from nubes.cli import arguments, target
    from nubes.client import printing

    printing.printer = output.log_printer(quiet)
    module, name = target.load(what, as_module)
    entry = target.the_entry(module, name, what.partition("::")[0])
    if asks_help:
        print(
            arguments.usage(entry.signature, entry.name)
            + (f"\n\n{entry.signature.about}" if entry.signature.about else "")
        )
        return
    args, kwargs = arguments.parse(context.args, entry.signature, entry.name)
    if detach:
        _spawn(entry, args, kwargs, json)
        return
    with entry.app.run():
        result = _call(entry, args, kwargs)
        if isinstance(result, Iterator):
            result = _show_each(result, json, keep=write_result is not None)
        elif result is not None and write_result is None:
            _show(result, json)
    if write_result is not None:
        _write(write_result, result)


def _call(entry: Entry, args: list[Any], kwargs: dict[str, Any]) -> Any:
    if entry.here is not None:
        try:
            result = entry.here(*args, **kwargs)
            return asyncio.run(result) if inspect.iscoroutine(result) else result
        except BaseException as error:
            raise UserError(error) from None
    try:
        return _remote(entry, kwargs).remote(*args, **kwargs)
    except (KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:
        raise UserError(error) from None


def _remote(entry: Entry, kwargs: dict[str, Any]) -> Any:
    """What to call; for a method, its class's parameters are taken out of `kwargs`."""
    if entry.cls is None:
        return entry.function
    own = getattr(entry.cls.__nubes_raw__, "__nubes_parameters__", ())
    made = entry.cls(**{name: kwargs.pop(name) for name in own if name in kwargs})
    return getattr(made, entry.name.partition(".")[2])


def _spawn(entry: Entry, args: list[Any], kwargs: dict[str, Any], json: bool) -> None:
    if entry.here is not None:
        raise UsageError(
            f"{entry.name} is an entrypoint: it runs here and cannot be detached.", "Name one of the app's functions."
        )
    connect(None)
    entry.app.deploy()
    call = _remote(entry, kwargs).spawn(*args, **kwargs)
    if json:
        output.as_json({"call_id": call.object_id, "app": entry.app.name, "function": entry.name})
    else:
        id = call.object_id
        print(f"{id}\nIts result: `nubes call get {id}`; what it prints: `nubes logs {id}`.")


def _show(result: Any, json: bool) -> None:
    print(_json(result) if json else result, flush=True)


def _show_each(result: Iterator[Any], json: bool, keep: bool) -> list[Any]:
    kept = []
    try:
        for item in result:
            kept.append(item) if keep else _show(item, json)
    except (KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:
        raise UserError(error) from None
    return kept


def _json(result: Any) -> str:
    from nubes.gateway import plain

    try:
        return plain.encode(result).decode()
    except plain.NotPlain as error:
        raise UsageError(
            f"The result is {error}, which is not JSON.", "Leave --json out, or return plain data."
        ) from None


def _write(path: Path, result: Any) -> None:
    """Bytes and text as they are, anything else as JSON."""
    content = (
        result
        if isinstance(result, bytes)
        else result.encode()
        if isinstance(result, str)
        else (_json(result) + "\n").encode()
    )
    try:
        path.write_bytes(content)
    except OSError as error:
        raise UsageError(f"The result cannot be written to {path}: {error.strerror}.", "Choose another file.") from None


def deploy(what: AppOf, as_module: AsModule = False, data: Data = None, json: Json = False) -> None:
    """Put an app on the running control plane, where it stays; an earlier version makes way."""
    folder = Path(settle(data=data)["data"].value)
    from nubes.cli import target

    module, name = target.load(what, as_module)
    app = target.the_app(module, name, what.partition("::")[0])
    connect(None)
    answer = app.deploy()
    from nubes.cli.server import _url
    from nubes.gateway.web import endpoints

    url = _url(folder)
    reached = (
        [url + path for path in endpoints({made.spec.name: made.spec for made in app.functions.values()})]
        if url
        else []
    )
    if json:
        output.as_json({**answer, "endpoints": reached})
        return
    print(f"{answer['app']} is deployed, as version {answer['version']}: {', '.join(answer['functions'])}.")
    for one in reached:
        print(f"  {one}")
