"""The HTTP API of LLMs."""

from nubes.llm.api.app import app
from nubes.llm.api.quota import Quota

__all__ = ["Quota", "app"]
