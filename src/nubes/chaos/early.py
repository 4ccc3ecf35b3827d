"""A control plane that answers before it has written anything down, to show that the auditor notices what it loses.

`python -m nubes.chaos.early COMMAND ...` is `nubes COMMAND ...` with that mistake.
"""

from __future__ import annotations

from collections.abc import Callable

from nubes.cli.main import main
from nubes.drivers.local import journal

LATE_S = 0.5  # how long after it was acknowledged a record is written


def _at_once(self: journal.Journal, then: Callable[[], None], otherwise: Callable[[str], None] | None = None) -> None:
    self._loop.call_soon(then)


if __name__ == "__main__":
    journal.WRITE_S = LATE_S
    journal.Journal.when_safe = _at_once  # type: ignore[method-assign]
    main()
