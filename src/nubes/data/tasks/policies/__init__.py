"""Policies of the seam in `nubes.data.tasks.seams`, one module per published system."""
