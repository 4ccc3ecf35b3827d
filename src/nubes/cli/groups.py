"""Groups of commands that say what there is when asked for what there is not."""

from __future__ import annotations

import difflib
from typing import Any

from typer.core import TyperGroup

from nubes.kernel.errors import UsageError

ABSENT = {  # commands that people look for, and what to do instead
    "nubes app rollback": (
        "A version is an app's settings; its code stays in your files, and nubes keeps no copy of it. "
        "To go back, `git checkout` the files and `nubes deploy` them; `nubes app history` lists what was deployed."
    ),
}


class Group(TyperGroup):
    """Names the nearest commands, or all, when a word is none of them."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        word = args[0]
        if self.get_command(ctx, word) is None and not word.startswith("-"):
            raise UsageError(f"No such command {word!r}.", self._instead(ctx.command_path, word))
        return super().resolve_command(ctx, args)

    def _instead(self, path: str, word: str) -> str:
        if f"{path} {word}" in ABSENT:
            return ABSENT[f"{path} {word}"]
        below = [f"{name} {word}" for name, one in self.commands.items() if word in getattr(one, "commands", {})]
        near = below or difflib.get_close_matches(word, self.commands, 1, 0.6)
        if near:
            return f"Did you mean {' or '.join(f'`{path} {one}`' for one in near)}?"
        return f"There are: {', '.join(self.commands)}."
