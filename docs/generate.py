"""Writes the tables that the code itself knows best into the documentation: `python docs/generate.py`.

They stand between `<!-- begin: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import typer.main

from nubes import config
from nubes.cli.commands import app
from nubes.kernel.policy import SEAMS, load, policies

HERE = Path(__file__).parent
PAGES = (HERE.parent / "README.md", *sorted(HERE.glob("*.md")))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def policy_tables() -> str:
    """A section for each seam: what it decides, its default, and its policies."""
    parts = []
    load()
    for name, seam in sorted(SEAMS.items()):
        if not seam.base.__module__.startswith("nubes."):
            continue
        rows = [
            (f"`{cls.name}`", about(cls), f"*{cls.paper.title}* ({cls.paper.venue})" if cls.paper else "")
            for cls in policies(name)
            if cls.__module__.startswith("nubes.")
        ]
        parts += [
            f"## {name}",
            f"{about(seam.base)} Default: `{seam.default}`.",
            table(("Policy", "What it does", "Paper"), rows),
        ]
    return "\n\n".join(parts)


def setting_table() -> str:
    rows = (
        (
            f"`{s.name}`",
            f"`{s.variable}`",
            f"`{s.default}`" if s.default not in ("", 0.0) and s.name != "data" else "",
            s.about,
        )
        for s in config.SETTINGS
    )
    return table(("Setting", "Variable", "Default", "What it is"), rows)


def command_table() -> str:
    group = typer.main.get_command(app)
    rows = []
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        for words, one in [(name, command)] if inner is None else [(f"{name} {i}", c) for i, c in inner.items()]:
            rows.append((f"`nubes {words}`", (one.help or "").strip().partition("\n")[0]))
    return table(("Command", "What it does"), rows)


REPLAY = ("replay", "azure-like(functions=100,length=2h)", "--keep-alive", "fixed-window,hybrid-histogram,cidre")


def replay_output() -> str:
    """A replay as the terminal shows it, but for how fast it was."""
    done = subprocess.run([sys.executable, "-m", "nubes.cli.main", *REPLAY], capture_output=True, text=True, check=True)
    lines = [line.rstrip() for line in done.stdout.splitlines() if " a second on a core" not in line]
    words = " ".join(f'"{word}"' if "(" in word else word for word in REPLAY)
    return "\n".join(["```console", f"$ nubes {words}", *lines, "```"])


def about(thing: object) -> str:
    return (thing.__doc__ or "").strip().partition("\n")[0]


BLOCKS: dict[str, Callable[[], str]] = {
    "policies": policy_tables,
    "settings": setting_table,
    "commands": command_table,
    "replay": replay_output,
}


def generated(text: str) -> str:
    """A page with its blocks made anew."""

    def block(match: re.Match[str]) -> str:
        return f"{match[1]}\n{BLOCKS[match[2]]()}\n{match[3]}"

    return re.sub(r"(<!-- begin: (\w+) -->).*?(<!-- end -->)", block, text, flags=re.DOTALL)


def main() -> None:
    for page in PAGES:
        before = page.read_text()
        after = generated(before)
        if after != before:
            page.write_text(after)
            print(f"{page.name} was brought up to date.")


if __name__ == "__main__":
    main()
