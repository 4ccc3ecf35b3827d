"""Allocation over inventories of any size: rules that filter and rank, caches, several agents (Protean, OSDI 2020)."""

from nubes.cluster.allocation.allocator import Agent, Allocator, Rulebook
from nubes.cluster.allocation.inventory import Cluster, Inventory, Log, Weights
from nubes.cluster.allocation.ranking import Ranking, Rules

__all__ = ["Agent", "Allocator", "Cluster", "Inventory", "Log", "Ranking", "Rulebook", "Rules", "Weights"]
