"""What happens to a value on an edge of the graph, beside the engine."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from nubes.kernel.errors import NubesError, UsageError
from nubes.llm.checkpoint.extras import needed
from nubes.llm.graphs.spec import Transform

if TYPE_CHECKING:
    import regex

SHOWN = 80  # characters of a text in an error
LONGEST = 1000  # characters of a regular expression
LIMIT_S = 0.5  # that a search may take; it takes memory, too


class TransformFailed(NubesError):
    """A text is not what a transform expects: the model wrote something else."""


def check(transforms: Iterable[Transform]) -> None:
    """Raises `UsageError` for a regular expression that is none, or a JSON field without a path."""
    for transform in transforms:
        if transform.kind == "regex":
            compiled(transform.argument)
        if transform.kind == "json" and not transform.argument:
            raise UsageError("A JSON transform needs the path of a field.", 'Write "name" or "items.0.name".')


def apply(transforms: Iterable[Transform], text: str) -> str:
    """The value after all transforms, in order. Raises `TransformFailed`."""
    for transform in transforms:
        if transform.kind == "strip":
            text = text.strip()
        elif transform.kind == "regex":
            found = _found(transform.argument, text)
            if found is None:
                raise TransformFailed(f"{transform.argument!r} matches nothing in {text[:SHOWN]!r}.")
            text = (found[1] or "") if found.re.groups else found[0]
        else:
            text = _field(transform.argument, text)
    return text


def compiled(pattern: str) -> regex.Pattern[str]:
    """A regular expression as Python's, of a library that can stop a search. Raises `UsageError`."""
    with needed():
        import regex
    if len(pattern) > LONGEST:
        raise UsageError(f"A regular expression has {len(pattern)} characters.", f"Write at most {LONGEST}.")
    try:
        return regex.compile(pattern)
    except (regex.error, RecursionError) as error:
        raise UsageError(f"{pattern[:SHOWN]!r} is no regular expression: {error}.") from None


def _found(pattern: str, text: str) -> Any:
    """The first match, or None. Raises `UsageError` for a pattern that takes for ever."""
    try:
        return compiled(pattern).search(text, timeout=LIMIT_S)
    except TimeoutError:
        raise UsageError(
            f"The regular expression {pattern[:SHOWN]!r} takes more than {LIMIT_S:g} s for {len(text)} characters.",
            "Leave out repeats of what is repeated already, as in (a+)+.",
        ) from None


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
