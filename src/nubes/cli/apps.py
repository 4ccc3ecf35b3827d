"""`nubes stop` and `nubes app`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer

from nubes import ids
from nubes.cli import output
from nubes.cli.groups import Group
from nubes.cli.options import Data, Json, connect, folder
from nubes.kernel.errors import NotFound, UsageError

group = typer.Typer(cls=Group, help="Apps: which are deployed, and which versions there were.", no_args_is_help=True)


def stop(
    what: Annotated[str, typer.Argument(metavar="APP|CALL", help="An app, or a call like fc-1x9k2m4p7qr3t.")],
    data: Data = None,
    json: Json = False,
) -> None:
    """Take an app off the control plane, or cancel a call."""
    client = connect(data)
    if what.startswith("fc-"):
        client.cancel(ids.parse(what), terminate=True)
        if json:
            output.as_json({"call_id": what})
        else:
            print(f"{what} is cancelled.")
        return
    client.ask("stop_app", app=what)
    if json:
        output.as_json({"app": what})
    else:
        print(f"{what} is stopped; its log and what it printed are kept.")


@group.command("list")
def list_(data: Data = None, json: Json = False) -> None:
    """The apps that are deployed."""
    apps: dict[str, Any] = connect(data).ask("status")["apps"]
    if json:
        output.as_json([{"app": name, **app} for name, app in apps.items()])
    elif apps:
        rows = (
            (n, a["version"], "ephemeral" if a["ephemeral"] else "deployed", ", ".join(a["functions"]))
            for n, a in apps.items()
        )
        output.table("", ("app", "version", "kind", "functions"), rows)
    else:
        print("No app is deployed. Next: `nubes deploy app.py`.")


@group.command()
def history(
    app: Annotated[str, typer.Argument(metavar="APP", help="The app's name.")], data: Data = None, json: Json = False
) -> None:
    """When which version of an app was deployed, from the log.

    To go back to an earlier version, bring its files back (`git checkout`) and deploy them; nubes keeps no copy.
    """
    found = _history(app, data)
    if json:
        output.as_json(found)
    else:
        rows = ((r["at"], r["what"], r["version"] or "", ", ".join(r["functions"])) for r in found)
        output.table("", ("at", "what", "version", "functions"), rows)


def _history(app: str, data: str | None) -> list[dict[str, Any]]:
    from nubes.drivers.local import state
    from nubes.functions import events as e
    from nubes.kernel.message import Codec

    where = folder(data) / "log"
    if not where.is_dir():
        raise UsageError(f"{where} holds no log.", "Name the data folder of a nubes that ran, with --data.")
    decode = Codec(e.EVENTS).decode
    found: list[dict[str, Any]] = []
    seen: set[str] = set()
    for record in state.read(where):
        at, event = decode(record)
        if not isinstance(event, (e.Deployed, e.Removed)):
            continue
        seen.add(event.app)
        if event.app != app:
            continue
        when = datetime.fromtimestamp(at).astimezone().isoformat(timespec="seconds")
        if isinstance(event, e.Deployed):
            names = [spec.name for spec in event.functions]
            digests = {spec.name: spec.code.digest for spec in event.functions}
            found.append(
                {"at": when, "what": "deployed", "version": event.version, "functions": names, "digests": digests}
            )
        else:
            found.append({"at": when, "what": "stopped", "version": None, "functions": [], "digests": {}})
    if not found:
        raise NotFound(f"No app {app!r} was ever deployed here.", f"There were: {', '.join(sorted(seen)) or 'none'}.")
    return found
