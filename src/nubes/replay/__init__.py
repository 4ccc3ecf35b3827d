"""Replays: a workload against any set of policies, in virtual time, with the error stated."""

from typing import TYPE_CHECKING, Any

from nubes.replay.configuration import Configuration, configurations
from nubes.replay.report import Report, ranking
from nubes.replay.runner import replay

if TYPE_CHECKING:
    from nubes.replay.page import html
    from nubes.replay.terminal import table

__all__ = ["Configuration", "Report", "configurations", "html", "ranking", "replay", "table"]


def __getattr__(name: str) -> Any:
    """How a report is shown is imported when it is."""
    if name == "html":
        from nubes.replay.page import html

        return html
    if name == "table":
        from nubes.replay.terminal import table

        return table
    raise AttributeError(name)
