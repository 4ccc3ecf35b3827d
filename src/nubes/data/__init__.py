"""Data: graphs of tasks over objects."""
