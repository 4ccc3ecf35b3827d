"""`nubes bundle` and `nubes open`: a cloud's past in one file, and walking through it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nubes.cli import output
from nubes.cli.options import Data, Json, folder
from nubes.kernel.errors import UsageError

HELP = """state: the controller before record {number}   event: what comes next, at time now
step(n=1): take it, see what is commanded        back(n=1), go(n): to another record
why(call): explain a call                        wrong(): what should hold and does not   opened.hash"""


def bundle(
    out: Annotated[Path, typer.Option("-o", "--output", help="The file to write.")],
    at: Annotated[
        str, typer.Option(help="Open it before this record, or before what was last decided on this call (fc-...).")
    ] = "",
    no_data: Annotated[
        bool, typer.Option("--no-data", help="Leave out arguments, results and the values of variables.")
    ] = False,
    data: Data = None,
    json: Json = False,
) -> None:
    """Put the log into one file that opens anywhere, in the state before a decision. Secrets are never in it."""
    from nubes import ids
    from nubes.replay.bundle import of_folder

    call = ids.parse(at) if at.startswith("fc-") else 0
    if at and not call and not at.isdigit():
        raise UsageError(f"{at!r} is neither a record nor a call.", "Write a number, or an id like fc-1x9k2m4p7qr3t.")
    about = of_folder(folder(data), out, int(at) if at and not call else None, call=call, data=not no_data)
    if json:
        output.as_json(about)
    else:
        print(f"{out} opens before record {about['at']} of {about['count']}: nubes open {out}")
        if not no_data:
            print("It holds arguments and results of spawned calls; --no-data leaves them out.")


def open_bundle(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `nubes bundle` wrote.")],
    at: Annotated[int | None, typer.Option(help="Open it before this record instead.")] = None,
    json: Json = False,
) -> None:
    """Open a bundle: look at the state, step through events, ask why."""
    from nubes.replay.bundle import load

    opened, about = load(file)
    if at is not None:
        opened.go(at)
    if json:
        output.as_json({"about": about, **opened.to_dict()})
        return
    _interact(opened, about)


def _interact(opened: Any, about: dict[str, Any]) -> None:
    import code

    class Names(dict[str, Any]):
        """Names that always mean the present step."""

        def __missing__(self, name: str) -> Any:
            if name in ("state", "event", "now", "number"):
                return getattr(opened, name)
            raise KeyError(name)

    names = Names(
        opened=opened, about=about, step=opened.step, back=opened.back, go=opened.go, wrong=opened.wrong,
        why=lambda call: output.console().print(opened.why(call)),
    )  # fmt: skip
    wrong = f"\nWhat was wrong: {about['wrong']}" if about["wrong"] else ""
    made = f"Before record {opened.number} of {opened.count}, nubes {about['nubes']}.{wrong}\n"
    code.interact(banner=made + HELP.format(number=opened.number), local=names, exitmsg="")
