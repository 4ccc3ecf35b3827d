"""LLMs: an engine for decoder models, the schedulers that drive it live and in simulation, and its API."""
