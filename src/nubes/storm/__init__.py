"""Storms over a user's own app: simulated days full of faults, the smallest schedule that breaks it, the same live."""
