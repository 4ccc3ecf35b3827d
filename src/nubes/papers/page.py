"""Writes docs/papers.md from the catalogue and the recorded results: `python -m nubes.papers.page [FILE]`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from nubes.papers.claims import Result
from nubes.papers.registry import Entry, catalogue
from nubes.papers.store import recorded

INTRO = """# Published systems

Each of these is in the box: as a named policy, or as a mechanism, tool or study with a reproduction of its own.
`nubes papers` lists them, and `nubes reproduce ID` measures a system's claims again, on your machine. What must hold
stands in the code before the run and is judged on the median over seeds; the smallest and the largest value are shown
beside it. A claim that does not hold is listed like any other.
"""


def page(entries: Sequence[Entry], results: Mapping[str, Sequence[Result]]) -> str:
    """The page as Markdown."""
    rows = [
        (
            f"[{e.id}](#{e.id})" if e.id in results else e.id,
            f"{e.title} ({e.venue})",
            e.area,
            e.seam,
            e.mode,
            _verdict(e.holds),
        )
        for e in entries
    ]
    parts = [INTRO, _table(("System", "Paper", "Area", "Seam", "Reproduced", "All claims hold"), rows)]
    failed = [result for e in entries for result in results.get(e.id, ()) if result.holds is False]
    parts.append("## Claims that did not hold\n")
    if failed:
        parts.append(
            "\n".join(f"- [{r.id}](#{r.id}): {r.claim} Measured {_measured(r)}; {r.metric}." for r in failed) + "\n"
        )
    else:
        parts.append("None of those measured.\n")
    parts += [_section(e, results[e.id]) for e in entries if e.id in results]
    return "\n".join(parts)


def _section(entry: Entry, results: Sequence[Result]) -> str:
    rows = [
        (r.claim, r.metric, r.baseline, r.paper or "-", _measured(r), f"{r.workload} ({r.mode})", _verdict(r.holds))
        for r in results
    ]
    about = f"{entry.name}: *{entry.title}* ({entry.venue}). Check it with `nubes reproduce {entry.id}`."
    return f"## {entry.id}\n\n{about}\n\n" + _table(
        ("Claim", "Metric", "Baseline", "Paper", "Measured", "Workload", "Holds"), rows
    )


def _measured(result: Result) -> str:
    m = result.measured
    if m.median is None or m.min is None or m.max is None:
        return "not measured"
    return f"{m.median:g}" if m.min == m.max else f"{m.median:g} ({m.min:g} to {m.max:g})"


def _verdict(holds: bool | None) -> str:
    return "not measured" if holds is None else "yes" if holds else "**no**"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def main() -> None:
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/papers.md")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(catalogue(), recorded()))


if __name__ == "__main__":
    main()
