"""Graphs of tasks, objects and actors: scheduled bottom-up, and made again from their lineage when a node is lost."""
