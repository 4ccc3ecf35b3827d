"""Replicas behind one name: which of them takes a request, and when a second one gets a copy of it."""
