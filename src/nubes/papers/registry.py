"""Which published systems there are, from the code itself, and how to run their reproductions."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from nubes.kernel.errors import NotFound, UsageError
from nubes.kernel.policy import Paper, policies
from nubes.papers.claims import Claim, Result
from nubes.papers.context import Context, Progress
from nubes.papers.store import recorded

Run = Callable[[Context], Iterator[Result]]


class Reproduction(msgspec.Struct, frozen=True):
    """How one system's claims are checked."""

    paper: Paper
    area: str
    seam: str
    mode: str
    claims: tuple[Claim, ...]
    run: Run


class Entry(msgspec.Struct, frozen=True):
    """One published system. `holds`: whether every claim measured so far holds; None if none was measured."""

    id: str
    name: str
    title: str
    venue: str
    area: str
    seam: str
    mode: str  # how it is reproduced; a policy runs both live and simulated anyway
    holds: bool | None


_REPRODUCTIONS: dict[str, Reproduction] = {}


def reproduction(paper: Paper, *, claims: Sequence[Claim], area: str, seam: str, mode: str) -> Callable[[Run], Run]:
    """Marks a generator of results as the reproduction of `paper`.

    It stands in a module of `nubes.papers` named after the paper's id. It tells of every one of its `claims`, each
    through `Context.result` or `Context.unmeasured`. `mode` is live, simulated or both.
    """
    if mode not in ("live", "simulated", "both"):
        raise UsageError(f"{mode!r} is no mode.", "Write live, simulated or both.")

    def mark(run: Run) -> Run:
        _REPRODUCTIONS[paper.id] = Reproduction(paper, area, seam, mode, tuple(claims), run)
        return run

    return mark


def catalogue() -> list[Entry]:
    """Every published system in the box: those that are policies, and those that only their reproduction knows."""
    package = importlib.import_module(__package__ or "nubes.papers")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    seams: dict[str, list[str]] = {}
    known: dict[str, tuple[Paper, str]] = {}
    for cls in policies():
        if cls.paper is not None:
            area = cls.__module__.split(".")[1] if cls.__module__.startswith("nubes.") else cls.__module__
            known.setdefault(cls.paper.id, (cls.paper, area))
            if cls.seam not in seams.setdefault(cls.paper.id, []):
                seams[cls.paper.id].append(cls.seam)
    entries = {
        id: Entry(id, paper.name, paper.title, paper.venue, area, ", ".join(seams[id]), "both", None)
        for id, (paper, area) in known.items()
    }
    results = recorded()
    for id, made in _REPRODUCTIONS.items():
        paper = made.paper
        entries[id] = Entry(
            id, paper.name, paper.title, paper.venue, made.area, made.seam, made.mode, _all_hold(results.get(id))
        )
    return [entries[id] for id in sorted(entries)]


def _all_hold(results: Sequence[Result] | None) -> bool | None:
    told = [result.holds for result in results or () if result.holds is not None]
    return all(told) if told else None


def find(id: str) -> Reproduction:
    """The reproduction of that id. Raises `NotFound` with the nearest right ones."""
    module = id.replace("-", "_")
    if importlib.util.find_spec(f"nubes.papers.{module}") is not None:
        importlib.import_module(f"nubes.papers.{module}")
    if id not in _REPRODUCTIONS:
        catalogue()  # loads them all
        near = difflib.get_close_matches(id, list(_REPRODUCTIONS), n=3, cutoff=0.4)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"There are: {', '.join(sorted(_REPRODUCTIONS))}."
        raise NotFound(f"There is no reproduction of {id!r}.", hint)
    return _REPRODUCTIONS[id]


def run(
    id: str, seeds: int = 3, trace: str | None = None, scale: str = "small", progress: Progress | None = None
) -> Iterator[Result]:
    """Checks a system's claims and yields each result as it comes.

    `trace` is a workload (`nubes.workloads.load`) to use in place of the one the reproduction would choose. `progress`
    is told the share of claims that are done, and what is being done.
    """
    if seeds < 1:
        raise UsageError(f"seeds={seeds} is none.", "Use at least one; three tell how far results spread.")
    if scale not in ("small", "full"):
        raise UsageError(f"{scale!r} is no scale.", "Write small (about a minute) or full (what the claim asks for).")
    made = find(id)
    with tempfile.TemporaryDirectory(prefix=f"nubes-{id}-") as folder:
        ctx = Context(made.paper, made.claims, made.mode, seeds, trace, scale == "full", Path(folder), progress)
        yield from made.run(ctx)
    silent = [claim.text for claim in made.claims if claim not in ctx.told]
    if silent:
        raise UsageError(
            f"The reproduction of {id} says nothing of {silent[0]!r}.", "Use ctx.result or ctx.unmeasured."
        )


def reproduce(
    id: str, seeds: int = 3, trace: str | None = None, scale: str = "small", progress: Progress | None = None
) -> list[Result]:
    """Checks a system's claims; see `run`."""
    return list(run(id, seeds, trace, scale, progress))
