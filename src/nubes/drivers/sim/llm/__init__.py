"""LLM engines in virtual time: alone, behind a router, or as a fleet under the controller that runs live."""

from nubes.drivers.sim.llm.engine import simulate_llm
from nubes.drivers.sim.llm.instance import Instance, pipelined
from nubes.drivers.sim.llm.served import Served

__all__ = ["Instance", "Served", "pipelined", "simulate_llm"]
