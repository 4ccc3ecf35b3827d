"""Which tokens of which sequences run next, and in which blocks: the state machine of one LLM engine."""
