"""Replays: a workload against any set of policies, in virtual time, with the error stated."""

from nubes.replay.configuration import Configuration, configurations
from nubes.replay.report import Report, ranking
from nubes.replay.runner import replay

__all__ = ["Configuration", "Report", "configurations", "ranking", "replay"]
