"""Live chaos: a cloud of its own under load, real faults, and an auditor that compares what was told with the log.

`audit` judges plain data (`evidence`), and knows nothing of processes. `run` makes that data: it starts a control
plane, agents and clients (`cloud`, `network`, `load`), breaks them by a seeded schedule (`schedule`, `faults`), waits
until all that was accepted is answered, and gathers what everybody wrote down.
"""
