"""What happens to a value on an edge of the graph, beside the engine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from nubes.kernel.errors import NubesError, UsageError
from nubes.llm.graphs.spec import Transform

SHOWN = 80  # characters of a text in an error


class TransformFailed(NubesError):
    """A text is not what a transform expects: the model wrote something else."""


def check(transforms: Iterable[Transform]) -> None:
    """Raises `UsageError` for a regular expression that is none, or a JSON field without a path."""
    for transform in transforms:
        if transform.kind == "regex":
            try:
                re.compile(transform.argument)
            except re.error as error:
                raise UsageError(f"{transform.argument!r} is no regular expression: {error}.", "") from None
        if transform.kind == "json" and not transform.argument:
            raise UsageError("A JSON transform needs the path of a field.", 'Write "name" or "items.0.name".')


def apply(transforms: Iterable[Transform], text: str) -> str:
    """The value after all transforms, in order. Raises `TransformFailed`."""
    for transform in transforms:
        if transform.kind == "strip":
            text = text.strip()
        elif transform.kind == "regex":
            found = re.search(transform.argument, text)
            if found is None:
                raise TransformFailed(f"{transform.argument!r} matches nothing in {text[:SHOWN]!r}.")
            text = (found[1] or "") if found.re.groups else found[0]
        else:
            text = _field(transform.argument, text)
    return text


def _field(path: str, text: str) -> str:
    """A field of the first JSON object in a text; what is no string is written as JSON."""
    at = text.find("{")
    try:
        if at < 0:
            raise ValueError
        value, _ = json.JSONDecoder().raw_decode(text, at)
    except (ValueError, RecursionError):
        raise TransformFailed(f"There is no JSON object in {text[:SHOWN]!r}.") from None
    for name in path.split("."):
        try:
            value = value[int(name)] if isinstance(value, list) else value[name]
        except (KeyError, IndexError, ValueError, TypeError):
            raise TransformFailed(f"There is no field {path!r} in {text[:SHOWN]!r}.") from None
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
