"""The drivers in virtual time."""

from nubes.drivers.sim.driver import simulate

__all__ = ["simulate"]
