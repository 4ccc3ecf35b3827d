"""Signatures of functions, for those who call them with text: parameters with types that texts are turned into.

`of` reads a live function; `read` reads a source file without running it, as a server does for others' code.
"""

from __future__ import annotations

import ast
import datetime
import decimal
import enum
import functools
import inspect
import typing
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

POSITIONAL, KEYWORD, MANY, OTHERS = "positional", "keyword", "many", "others"


class Parameter(msgspec.Struct, frozen=True):
    """`kind`: positional (or by keyword), keyword (only), many (`*args`) or others (`**kwargs`)."""

    name: str
    type: Any = Any
    required: bool = True
    default: Any = None
    kind: str = POSITIONAL


class Signature(msgspec.Struct, frozen=True):
    parameters: tuple[Parameter, ...]
    returns: Any = Any
    about: str = ""
    generator: bool = False

    def find(self, name: str) -> Parameter | None:
        return next((p for p in self.parameters if p.name == name and p.kind in (POSITIONAL, KEYWORD)), None)

    @property
    def open(self) -> bool:
        """Whether it takes keyword arguments of any name."""
        return any(p.kind == OTHERS for p in self.parameters)


def convert(text: str, kind: Any) -> Any:
    """`text` as a value of type `kind`. Raises `ValueError` with what was expected."""
    if kind is Any:
        return literal(text)
    if kind in (str, inspect.Parameter.empty):
        return text
    try:
        if text[:1] in "{[" and text[:1]:
            return msgspec.json.decode(text, type=kind, strict=False)
    except (msgspec.DecodeError, TypeError, ValueError):
        pass
    if isinstance(kind, type) and issubclass(kind, enum.Enum) and text in kind.__members__:
        return kind[text]
    try:
        return msgspec.convert(text, kind, strict=False, dec_hook=_path)
    except msgspec.ValidationError as error:
        raise ValueError(str(error).replace("`", "").replace("Expected ", "expected ")) from None
    except (TypeError, NotImplementedError):
        return literal(text)  # a type that texts cannot be turned into: the function says what it thinks of it


def _path(kind: type, text: Any) -> Any:
    if issubclass(kind, Path):
        return kind(text)
    raise NotImplementedError


def literal(text: str) -> Any:
    """JSON if it is, else the text itself."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, ValueError):
        return text


def of(function: Callable[..., Any], skip_self: bool = False) -> Signature:
    """The signature of a function that is here."""
    try:
        hints = typing.get_type_hints(function)
    except Exception:
        hints = {}
    kinds: dict[Any, str] = {
        inspect.Parameter.KEYWORD_ONLY: KEYWORD, inspect.Parameter.VAR_POSITIONAL: MANY,
        inspect.Parameter.VAR_KEYWORD: OTHERS,
    }  # fmt: skip
    parameters = []
    for p in list(inspect.signature(function).parameters.values())[1 if skip_self else 0 :]:
        required = p.default is inspect.Parameter.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        default = None if p.default is inspect.Parameter.empty else p.default
        kind = hints.get(p.name, _type_of(default))
        parameters.append(Parameter(p.name, kind, required, default, kinds.get(p.kind, POSITIONAL)))
    generator = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
    return Signature(tuple(parameters), hints.get("return", Any), inspect.getdoc(function) or "", generator)


def _type_of(default: Any) -> Any:
    return type(default) if isinstance(default, (bool, int, float, str)) else Any


# -- from source -------------------------------------------------------------------------------------------------------


def read(file: str, qualname: str) -> Signature | None:
    """The signature of a function (`f`, or `Class.method`) in a source file; None if it cannot be told."""
    try:
        return _read(file, qualname, Path(file).stat().st_mtime_ns)
    except (OSError, SyntaxError, ValueError):
        return None


@functools.lru_cache(maxsize=1024)
def _read(file: str, qualname: str, stamp: int) -> Signature | None:
    body: list[ast.stmt] = ast.parse(Path(file).read_bytes()).body
    found: ast.stmt | None = None
    for name in qualname.split("."):
        found = next((n for n in body if getattr(n, "name", None) == name), None)
        if found is None:
            return None
        body = found.body if isinstance(found, ast.ClassDef) else []
    if not isinstance(found, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return None
    return _of_node(found, method="." in qualname)


def _of_node(node: ast.FunctionDef | ast.AsyncFunctionDef, method: bool) -> Signature:
    given = node.args
    plain = [*given.posonlyargs, *given.args]
    defaults: list[ast.expr | None] = [*[None] * (len(plain) - len(given.defaults)), *given.defaults]
    parameters = [
        _parameter(a, d, POSITIONAL) for a, d in list(zip(plain, defaults, strict=True))[1 if method else 0 :]
    ]
    if given.vararg:
        parameters.append(Parameter(given.vararg.arg, _type(given.vararg.annotation), False, None, MANY))
    parameters += [_parameter(a, d, KEYWORD) for a, d in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    if given.kwarg:
        parameters.append(Parameter(given.kwarg.arg, _type(given.kwarg.annotation), False, None, OTHERS))
    return Signature(tuple(parameters), _type(node.returns), ast.get_docstring(node) or "", _yields(node))


def _parameter(arg: ast.arg, default: ast.expr | None, kind: str) -> Parameter:
    value: Any = None
    if default is not None:
        try:
            value = ast.literal_eval(default)
        except ValueError:
            value = None
    hint = _type(arg.annotation) if arg.annotation is not None else _type_of(value)
    return Parameter(arg.arg, hint, default is None, value, kind)


def _yields(node: ast.AST) -> bool:
    """Whether a function's own body yields; functions within it do not count."""
    inner = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
    return any(
        isinstance(child, (ast.Yield, ast.YieldFrom)) or (not isinstance(child, inner) and _yields(child))
        for child in ast.iter_child_nodes(node)
    )


_KNOWN: dict[str, Any] = {
    "int": int, "float": float, "str": str, "bool": bool, "bytes": bytes, "None": None,
    "list": list, "dict": dict, "tuple": tuple, "set": set, "List": list, "Dict": dict, "Tuple": tuple, "Set": set,
    "datetime": datetime.datetime, "date": datetime.date, "time": datetime.time, "timedelta": datetime.timedelta,
    "UUID": uuid.UUID, "Decimal": decimal.Decimal,
}  # fmt: skip


def _type(node: ast.expr | None) -> Any:
    """A type from its annotation, of those that need no import of the user's; `Any` for all others."""
    try:
        return _known(node)
    except (ValueError, TypeError, SyntaxError):
        return Any


def _known(node: ast.expr | None) -> Any:
    if isinstance(node, ast.Constant):
        return _known(ast.parse(node.value, mode="eval").body) if isinstance(node.value, str) else node.value
    if isinstance(node, ast.Name) and node.id in _KNOWN:
        return _KNOWN[node.id]
    if isinstance(node, ast.Attribute) and node.attr in _KNOWN:
        return _KNOWN[node.attr]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return typing.Union[_known(node.left), _known(node.right)]  # noqa: UP007
    if isinstance(node, ast.Subscript):
        outer = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if outer == "Literal":
            return typing.Literal[tuple(ast.literal_eval(one) for one in inner)]
        if outer == "Optional":
            return typing.Optional[_known(inner[0])]  # noqa: UP045
        if outer == "Union":
            return typing.Union[tuple(_known(one) for one in inner)]  # noqa: UP007
        if _KNOWN.get(outer) in (list, dict, tuple, set):
            return _KNOWN[outer][tuple(_known(one) if not _dots(one) else ... for one in inner)]
    raise ValueError


def _dots(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is ...
