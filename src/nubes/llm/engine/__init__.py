"""The real mechanism: a model that runs the scheduler's steps, and the text around it."""
