"""Packages that only models need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nubes.kernel.errors import UsageError


@contextmanager
def needed() -> Iterator[None]:
    """Around imports of the extra `llm`: says how to install what is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(f"LLMs need the package {error.name}.", "Run `pip install 'nubes[llm]'`.") from None
