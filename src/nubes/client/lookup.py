"""Finding what is deployed, by name."""

from __future__ import annotations

from nubes.client.client import Client
from nubes.client.connection import Target
from nubes.kernel.errors import NotFound


def find(client: Client, name: str) -> tuple[Target, bool]:
    """What to call for APP/FUNCTION or APP/CLASS.METHOD, and whether it is known to be a generator.

    Of methods that is not known. Raises `NotFound` with the nearest names.
    """
    known: dict[str, tuple[Target, bool]] = {}
    for f in client.ask("functions"):
        if f["kind"] == "class":
            known.update({f"{f['name']}.{method}": (Target(f["name"], method), False) for method in f["methods"]})
        else:
            known[f["name"]] = (Target(f["name"]), f["generator"])
    if name in known:
        return known[name]
    app = name.partition("/")[0] + "/"
    import difflib

    near = difflib.get_close_matches(name, known, 3, 0.5)
    beside = [one for one in known if one.startswith(app)]
    if near:
        hint = f"Did you mean {' or '.join(near)}?"
    elif known:
        hint = f"There are: {', '.join(beside or known)}."
    else:
        hint = "Deploy an app first: `nubes deploy app.py`."
    raise NotFound(f"No function {name!r} is deployed.", hint)
