"""Graphs of tasks on worker processes: results as arguments, actors with checkpoints, and lineage for what is lost."""

from nubes.data.tasks.comparing import compare
from nubes.data.tasks.declaring import ActorHandle, actor, get, put, task, wait
from nubes.data.tasks.live import Pool
from nubes.data.tasks.session import ObjectRef

__all__ = ["ActorHandle", "ObjectRef", "Pool", "actor", "compare", "get", "put", "task", "wait"]
