"""One module for each published system that decides something in an LLM engine."""
