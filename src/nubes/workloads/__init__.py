"""Workloads: real traces, recordings of a live nubes, and generators."""

from nubes.workloads.loading import load
from nubes.workloads.outcome import Outcome
from nubes.workloads.workload import Workload

__all__ = ["Outcome", "Workload", "load"]
