"""Calls that were spawned."""

from __future__ import annotations

from typing import Any

from nubes import client as clients
from nubes import ids
from nubes.kernel.units import seconds
from nubes.twins import twin


class FunctionCall:
    """A call that was spawned. Any process that knows its id can ask for its result."""

    def __init__(self, call: int) -> None:
        self._call = call

    @property
    def object_id(self) -> str:
        """The call's id, like fc-1x9k2m4p7qr3t."""
        return ids.show(self._call)

    @staticmethod
    def from_id(text: str) -> FunctionCall:
        """The call of that id. Raises `UsageError` if the text is no id."""
        return FunctionCall(ids.parse(text))

    async def _get(self, timeout: str | float | None = None) -> Any:
        return await clients.connect().aio.fetch(self._call, _seconds(timeout))

    @twin(_get)
    def get(self, timeout: str | float | None = None) -> Any:
        """The result, once it is there; what the function raised is raised here.

        `timeout` is text like "10s", or seconds; 0 only looks. Raises `CallTimeout` (a `TimeoutError`) when it is over.
        """
        return clients.connect().fetch(self._call, _seconds(timeout))

    def cancel(self, terminate_instances: bool = False) -> None:
        """Withdraws the call, and ends its instance if nothing else runs there; with `terminate_instances`, anyhow."""
        clients.connect().cancel(self._call, terminate_instances)

    @staticmethod
    def gather(*calls: FunctionCall) -> list[Any]:
        """The results of several calls, in their order; the first failure is raised."""
        return [call.get() for call in calls]

    def __repr__(self) -> str:
        return f"FunctionCall({self.object_id!r})"


def _seconds(timeout: str | float | None) -> float | None:
    return None if timeout is None else seconds(timeout, "timeout")
