"""Policies of the seams in `nubes.cluster.seams`, one module per published system."""
