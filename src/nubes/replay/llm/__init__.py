"""Replays of LLM requests: a workload against models, hardware and policies, in virtual time."""

from nubes.replay.llm.configuration import Configuration, configurations
from nubes.replay.llm.report import Report, ranking
from nubes.replay.llm.runner import replay_llm
from nubes.replay.llm.slo import Slo, slo

__all__ = ["Configuration", "Report", "Slo", "configurations", "ranking", "replay_llm", "slo"]
