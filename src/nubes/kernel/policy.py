"""Seams, policies and the registry that finds a policy by seam and name.

A seam is a base class marked with `@seam`; a policy is a subclass marked with `@policy`. Policies are written as text
wherever a user names one: `hybrid-histogram`, or with arguments `fixed-window(keep=10m)`.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Any, ClassVar, TypeVar, cast

import msgspec

from nubes.kernel.errors import UnknownPolicy, UsageError

ENTRY_POINTS = "nubes.policies"


class Paper(msgspec.Struct, frozen=True):
    """Where a published system comes from."""

    id: str
    name: str
    title: str
    venue: str


class Policy:
    """One replaceable decision. Its attributes are plain data and its state; it does no I/O and reads no clock."""

    seam: ClassVar[str] = ""
    name: ClassVar[str] = ""
    paper: ClassVar[Paper | None] = None

    @property
    def text(self) -> str:
        """The words that make this policy again."""
        return getattr(self, "_text", self.name)


class Seam(msgspec.Struct, frozen=True):
    name: str
    default: str
    base: type[Policy]


SEAMS: dict[str, Seam] = {}
_POLICIES: dict[tuple[str, str], type[Policy]] = {}
_loaded = _begun = False
_loading = threading.RLock()

P = TypeVar("P", bound=type[Policy])
F = TypeVar("F", bound=Callable[..., Any])


def decision(method: F) -> F:
    """Marks a policy's method as a decision: `nubes why` keeps its view, its choice and what lost."""
    method.__nubes_decision__ = True  # type: ignore[attr-defined]
    return method


def decisions_of(base: type[Policy]) -> list[str]:
    """The names of the decisions a seam has; one that a policy overrides is still one."""
    marked = {
        name for cls in base.__mro__ for name, method in vars(cls).items() if hasattr(method, "__nubes_decision__")
    }
    return sorted(marked)


def seam(name: str, *, default: str) -> Callable[[P], P]:
    """Opens a seam: the class is what every policy on it extends, `default` the policy used when none is named."""

    def mark(base: P) -> P:
        base.seam = name
        SEAMS[name] = Seam(name, default, base)
        return base

    return mark


def policy(name: str, *, paper: Paper | None = None) -> Callable[[P], P]:
    """Puts a policy class on its base's seam under `name`."""

    def mark(cls: P) -> P:
        if not cls.seam:
            raise UsageError(f"Policy {name!r} extends no seam's base class.", f"Extend one of: {', '.join(SEAMS)}.")
        taken = _POLICIES.get((cls.seam, name))
        if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise UsageError(f"Two policies are named {name!r} on {cls.seam!r}.", "Rename one of them.")
        cls.name, cls.paper = name, paper
        _POLICIES[cls.seam, name] = cls
        return cls

    return mark


@contextmanager
def set_aside(seam_name: str) -> Iterator[None]:
    """A policy defined within stands on its seam only until the end, whatever name it has."""
    kept = dict(_POLICIES)
    for key in [key for key in _POLICIES if key[0] == seam_name]:
        del _POLICIES[key]
    try:
        yield
    finally:
        _POLICIES.clear()
        _POLICIES.update(kept)


def load() -> None:
    """Imports every package that announces policies through the entry point group `nubes.policies`."""
    if _loaded:
        return
    with _loading:
        _load()


def _load() -> None:
    global _loaded, _begun
    if _loaded or _begun:
        return
    _begun = True  # at once: a package that is imported here may look for policies itself
    for point in entry_points(group=ENTRY_POINTS):
        try:
            module = importlib.import_module(point.module)
            for inner in pkgutil.iter_modules(getattr(module, "__path__", ())):
                importlib.import_module(f"{point.module}.{inner.name}")
        except ImportError as error:
            _begun = False
            package = point.dist.name if point.dist else point.module
            raise UsageError(
                f"The policies of package {package!r} cannot be imported: {error}.", f"Mend or uninstall {package!r}."
            ) from error
    _loaded = True


def policies(seam_name: str | None = None) -> Iterator[type[Policy]]:
    """All policies, or those of one seam, in the order of their names."""
    load()
    for (where, _), cls in sorted(_POLICIES.items()):
        if seam_name in (None, where):
            yield cls


def find(seam_name: str, name: str) -> type[Policy]:
    """The policy class of that name. Raises `UnknownPolicy` with the nearest right ones."""
    _seam(seam_name)
    if (seam_name, name) in _POLICIES:
        return _POLICIES[seam_name, name]
    names = [known for where, known in sorted(_POLICIES) if where == seam_name]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"There are: {', '.join(names)}."
    raise UnknownPolicy(f"No {seam_name} policy is named {name!r}.", hint)


def _seam(name: str) -> Seam:
    load()
    if name not in SEAMS:
        raise UnknownPolicy(f"There is no seam {name!r}.", f"The seams are: {', '.join(sorted(SEAMS))}.")
    return SEAMS[name]


def make(seam_name: str, text: str | Policy | None = None) -> Any:
    """A new policy from its text, e.g. `fixed-window(keep=10m)`; the seam's default if None."""
    if isinstance(text, Policy):
        return text
    if text is None:
        text = _seam(seam_name).default
    match = re.fullmatch(r"\s*([\w.+-]+)\s*(?:\((.*)\))?\s*", text)
    if match is None:
        raise UsageError(
            f"{text!r} is not a policy.", "Write a name, or a name with arguments: fixed-window(keep=10m)."
        )
    cls = find(seam_name, match[1])
    kwargs: dict[str, Any] = {}
    for part in filter(str.strip, re.split(r"[,;]", match[2] or "")):
        key, eq, value = part.partition("=")
        if not eq:
            raise UsageError(f"{part!r} in {text!r} is no argument.", "Arguments are written name=value.")
        kwargs[key.strip()] = _literal(value.strip())
    try:
        made = cast(Any, cls)(**kwargs)
    except TypeError as error:
        takes = ", ".join(list(inspect.signature(cls).parameters)) or "none"
        raise UsageError(f"{text!r}: {error}.", f"{match[1]} takes: {takes}.") from None
    made._text = text.strip()
    return made


def split(texts: str) -> list[str]:
    """`a,b(x=1,y=2),c` -> three policy texts; commas within parentheses stay."""
    return [part.strip() for part in re.findall(r"(?:[^,(]|\([^)]*\))+", texts) if part.strip()]


def _literal(value: str) -> Any:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            pass
    return {"true": True, "false": False}.get(value.lower(), value)
