"""A function's parameters as command-line arguments: by place, or by name as flags."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any, get_args, get_origin

from nubes.kernel.errors import UsageError
from nubes.signatures import KEYWORD, MANY, OTHERS, POSITIONAL, Parameter, Signature, convert

_NUMBER = re.compile(r"-\.?\d")


def parse(given: Sequence[str], signature: Signature, name: str) -> tuple[list[Any], dict[str, Any]]:
    """Arguments and keyword arguments from words. Raises `UsageError` that names the flag and how it is called."""
    places = [p for p in signature.parameters if p.kind == POSITIONAL]
    many = next((p for p in signature.parameters if p.kind == MANY), None)
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    words = list(given)
    only_places = False
    while words:
        word = words.pop(0)
        if word == "--" and not only_places:
            only_places = True
        elif word.startswith("-") and len(word) > 1 and not _NUMBER.match(word) and not only_places:
            _flag(word, words, signature, kwargs, name)
        else:
            parameter = places[len(args)] if len(args) < len(places) else many
            if parameter is None:
                raise UsageError(f"{name} has no place for {word!r}.", usage(signature, name))
            args.append(_value(parameter, word, name))
    filled = {p.name for p in places[: len(args)]}
    for twice in filled & set(kwargs):
        raise UsageError(f"{twice!r} is given twice to {name}.", usage(signature, name))
    for p in signature.parameters:
        if p.required and p.kind in (POSITIONAL, KEYWORD) and p.name not in filled and p.name not in kwargs:
            raise UsageError(f"{name} needs {_flag_of(p)}.", usage(signature, name))
    return args, kwargs


def _flag(word: str, words: list[str], signature: Signature, kwargs: dict[str, Any], name: str) -> None:
    head, equals, value = word.partition("=")
    key = head.lstrip("-").replace("-", "_")
    parameter = signature.find(key)
    if parameter is None and key.startswith("no_") and _is_bool(signature.find(key[3:])):
        kwargs[key[3:]] = False
        return
    if parameter is None:
        if not signature.open:
            known = [p.name for p in signature.parameters if p.kind in (POSITIONAL, KEYWORD)]
            near = difflib.get_close_matches(key, known, 1)
            hint = f"Did you mean --{near[0].replace('_', '-')}?" if near else usage(signature, name)
            raise UsageError(f"{name} has no parameter {head!r}.", hint)
        parameter = Parameter(key, kind=OTHERS)
    if _is_bool(parameter) and not equals:
        kwargs[key] = True
        return
    if not equals:
        if not words:
            raise UsageError(f"{head} needs a value.", usage(signature, name))
        value = words.pop(0)
    if get_origin(parameter.type) is list and value[:1] != "[":
        inner = Parameter(key, get_args(parameter.type)[0])
        kwargs.setdefault(key, []).append(_value(inner, value, name))
    else:
        kwargs[key] = _value(parameter, value, name)


def _is_bool(parameter: Parameter | None) -> bool:
    return parameter is not None and parameter.type is bool


def _value(parameter: Parameter, word: str, name: str) -> Any:
    try:
        return convert(word, parameter.type)
    except ValueError as error:
        raise UsageError(f"{parameter.name} of {name} is {word!r}: {error}.", "Correct the value.") from None


def _flag_of(p: Parameter) -> str:
    return "--" + p.name.replace("_", "-")


def usage(signature: Signature, name: str) -> str:
    """One line that says how it is called."""
    words = []
    for p in signature.parameters:
        flag = _flag_of(p) if p.type is bool else f"{_flag_of(p)} {p.name.upper()}"
        if p.kind == MANY:
            words.append(f"[{p.name} ...]")
        elif p.kind == OTHERS:
            words.append("[--NAME VALUE ...]")
        else:
            words.append(flag if p.required else f"[{flag}]")
    return f"Usage: {name} {' '.join(words)}".rstrip() + "."


def loose(given: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Arguments of a function whose signature is not known: every value is JSON, or else text.

    One JSON object alone is keyword arguments, one list alone positional ones.
    """
    if len(given) == 1 and given[0][:1] in ("{", "["):
        value = convert(given[0], Any)
        if isinstance(value, dict):
            return [], value
        if isinstance(value, list):
            return value, {}
    return parse(
        given,
        Signature((Parameter("args", kind=MANY, required=False), Parameter("more", kind=OTHERS, required=False))),
        "it",
    )
