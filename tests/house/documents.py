"""Reads Markdown the way its readers do: files to write, commands to run."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(r"(?:^`(?P<file>[\w./-]+)`:\n\n)?^```(?P<kind>\w+)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next one of its level or above."""
    level = len(heading) - len(heading.lstrip("#"))
    begin = text.index(f"\n{heading}\n") + len(heading) + 2
    following = re.search(rf"^#{{1,{level}}} ", text[begin:], re.MULTILINE)
    return text[begin : begin + following.start()] if following else text[begin:]


def files(text: str) -> dict[str, str]:
    """Name -> content of the blocks that are introduced by a file name alone on its line."""
    return {m["file"]: m["body"] for m in _BLOCK.finditer(text) if m["file"]}


def commands(text: str) -> list[str]:
    """The lines after `$` in console blocks, without what explains them."""
    lines = [line for m in _BLOCK.finditer(text) if m["kind"] == "console" for line in m["body"].splitlines()]
    return [line[2:].partition("    #")[0].strip() for line in lines if line.startswith("$ ")]


def python_blocks(text: str) -> list[str]:
    return [m["body"] for m in _BLOCK.finditer(text) if m["kind"] == "python"]
