"""One answer as it grows: text that may be shown, stop strings, why it ended."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from nubes.llm.live import Tokens
from nubes.llm.spec import Delta, Finish, Sampling, TokenLogprob


class Answer:
    """Turns the tokens of one choice into deltas. Text is held back while it may be half a character or a stop."""

    def __init__(self, index: int, sampling: Sampling, tokens: Tokens, limit: int) -> None:
        self.index = index
        self.sampling = sampling
        self.limit = limit  # tokens it may have
        self.count = 0
        self.finish: Finish | None = None
        self.stop_reason: str | int | None = None
        self._tokens = tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._hold = max((len(stop) for stop in sampling.stop), default=1) - 1

    def push(self, token: int, logprob: TokenLogprob | None = None) -> Delta:
        """The next token came. The delta's `finish` says whether it was the last."""
        s = self.sampling
        self.count += 1
        early = self.count <= s.min_tokens
        delta = Delta(self.index, tokens=[token], logprobs=None if logprob is None else [logprob])
        if not early and token in s.stop_token_ids:
            return self._end(delta, "stop", token)
        if token in self._tokens.eos and not s.ignore_eos and not early:
            return self._end(delta, "stop", None)
        self._held += self._decoder.decode(self._tokens.piece(token))
        stop = None if early else self._stop()
        if stop is not None:
            at, reason = stop
            self._held = self._held[: at + len(reason)] if s.include_stop else self._held[:at]
            return self._end(delta, "stop", reason)
        if self.count >= self.limit:
            self._held += self._decoder.decode(b"", final=True)
            return self._end(delta, "length", None)
        shown = len(self._held) - self._partial()
        delta.text, self._held = self._held[:shown], self._held[shown:]
        return delta

    def _end(self, delta: Delta, finish: Finish, reason: str | int | None) -> Delta:
        self.finish = delta.finish = finish
        self.stop_reason = delta.stop_reason = reason
        delta.text, self._held = self._held, ""
        return delta

    def _stop(self) -> tuple[int, str] | None:
        """The stop string that comes first in what is held, and where."""
        found = [(at, stop) for stop in self.sampling.stop if (at := self._held.find(stop)) >= 0]
        return min(found, key=lambda pair: pair[0]) if found else None

    def _partial(self) -> int:
        """How many characters at the end could still become a stop string."""
        for count in range(min(self._hold, len(self._held)), 0, -1):
            tail = self._held[-count:]
            if any(stop.startswith(tail) for stop in self.sampling.stop):
                return count
        return 0


def shown(tokens: Tokens, answer: Sequence[int]) -> str:
    """The text of a whole answer."""
    return b"".join(tokens.piece(token) for token in answer).decode("utf-8", "replace")
