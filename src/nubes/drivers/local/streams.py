"""What calls yield: each item goes to the caller once, whichever execution of the call it comes from."""

from __future__ import annotations


class _Stream:
    def __init__(self) -> None:
        self.given = 0  # items that the caller was given
        self.yielded: dict[int, int] = {}  # instance -> items of its execution so far


class Streams:
    """Counts items per execution of a call: of a later one, those that its caller was given already are not new."""

    def __init__(self) -> None:
        self._streams: dict[int, _Stream] = {}

    def begin(self, call: int, instance: int) -> None:
        """An instance begins to run a call, for the first time or again."""
        stream = self._streams.get(call)
        if stream is not None:
            stream.yielded[instance] = 0

    def new(self, call: int, instance: int) -> bool:
        """An execution yields its next item; whether the caller is to have it."""
        stream = self._streams.setdefault(call, _Stream())
        number = stream.yielded.get(instance, 0)
        stream.yielded[instance] = number + 1
        if number < stream.given:
            return False
        stream.given += 1
        return True

    def end(self, call: int) -> None:
        """The call is answered."""
        self._streams.pop(call, None)
