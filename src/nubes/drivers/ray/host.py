"""The Ray actor that an agent lives in."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

from nubes.drivers.ray.objects import AgentObjects
from nubes.drivers.remote.agent import Agent
from nubes.drivers.remote.messages import About


class Host:
    """An agent on an event loop in a thread of its own; if it ends, so does the actor."""

    def __init__(self, folder: str, address: tuple[str, int], token: str, about: About) -> None:
        self._objects = AgentObjects(about.name)
        self._agent = Agent(Path(folder), address, token, about, self._objects)
        threading.Thread(target=self._serve, daemon=True).start()

    def give(self, key: int, content: Any) -> None:
        """Arguments for a call that is about to be told of."""
        self._objects.give(key, content)

    def take(self, key: int) -> Any:
        """A result that was told of."""
        return self._objects.take(key)

    def _serve(self) -> None:
        try:
            asyncio.run(self._agent.run())
        finally:
            os._exit(0)
