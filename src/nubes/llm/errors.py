"""What goes wrong with models."""

from __future__ import annotations

from nubes.kernel.errors import NubesError, UsageError


class ContextTooLong(UsageError):
    """The prompt, or the prompt and the tokens asked for, do not fit the model's context."""


class BrokenModel(NubesError):
    """The model's files are damaged, cut short, or not of a kind that is known."""

    exit_code = 2
