"""What calls that are not kept in the log were given, by their callers or by the step before."""

from __future__ import annotations

from collections.abc import Callable


class Inputs(dict[int, bytes]):
    """By call. What a caller gave is the caller's; what lies between two steps is nobody's, and `forget` ends it."""

    def __init__(self, forget: Callable[[bytes], None]) -> None:
        super().__init__()
        self._forget = forget
        self._between: set[int] = set()  # calls whose input is the output of the step before

    def hand_on(self, call: int, output: bytes) -> None:
        """A step is done, and what it gave is the input of the next."""
        self.spent(call)
        self[call] = output
        self._between.add(call)

    def moved(self, call: int, data: bytes) -> None:
        """What lay on another machine between two steps is here now, if it is still needed."""
        if call in self._between:
            self[call] = data
        else:
            self._forget(data)

    def spent(self, call: int) -> None:
        """Nobody needs a call's input any more."""
        data = self.pop(call, b"")
        if call in self._between:
            self._between.discard(call)
            self._forget(data)

    def is_shared(self, call: int) -> bool:
        """Whether it lies in memory that the caller wants back."""
        return call not in self._between and self.get(call, b"")[:1] == b"S"
