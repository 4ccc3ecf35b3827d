"""The kernel: events in, commands out, policies in between, a log underneath. It imports nothing else of nubes."""
