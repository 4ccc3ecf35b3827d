"""The published systems in the box: which there are, and how each one's claims are checked."""

from nubes.papers.claims import Claim, Criterion, Measured, Result, above, at_least, at_most, below, between
from nubes.papers.context import Context
from nubes.papers.registry import Entry, catalogue, reproduce, reproduction, run
from nubes.papers.store import record, recorded

__all__ = [
    "Claim",
    "Context",
    "Criterion",
    "Entry",
    "Measured",
    "Result",
    "above",
    "at_least",
    "at_most",
    "below",
    "between",
    "catalogue",
    "record",
    "recorded",
    "reproduce",
    "reproduction",
    "run",
]
