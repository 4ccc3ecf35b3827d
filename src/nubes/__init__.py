"""nubes."""
