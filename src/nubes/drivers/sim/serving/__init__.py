"""Replicated services in virtual time: clients that balance, and requests that fan out."""

from nubes.drivers.sim.serving.leaves import Fanned, simulate_leaves
from nubes.drivers.sim.serving.sharing import Balanced, simulate_balancing

__all__ = ["Balanced", "Fanned", "simulate_balancing", "simulate_leaves"]
