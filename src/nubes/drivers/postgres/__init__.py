"""State in PostgreSQL: the log, shared dicts and queues, and secrets. Needs the extra `postgres`."""
