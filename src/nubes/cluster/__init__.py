"""Machines, and what is placed on them."""
