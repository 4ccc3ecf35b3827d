"""What functions and clients share: dicts, queues, volumes and secrets."""

from __future__ import annotations

from nubes.storage.dicts import Dict
from nubes.storage.queues import Queue
from nubes.storage.secrets import Secret
from nubes.storage.volumes import Volume

__all__ = ["Dict", "Queue", "Secret", "Volume"]
