"""Requests to an LLM: when they come, how long their prompts and answers are, and what of a prompt was there before."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nubes.kernel.errors import UsageError
from nubes.workloads.loading import locate, made

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMATS = (
    "CSVs with TIMESTAMP,ContextTokens,GeneratedTokens (Azure) or num_prefill_tokens,num_decode_tokens with or without "
    "arrived_at (Vidur), Mooncake's JSON lines, or the recording of an LLM that served"
)


@dataclass(frozen=True, eq=False)
class LLMWorkload:
    """n requests in columns, by arrival. Lengths are tokens, times are seconds from the workload's start.

    A request of a session continues the one before it: its prompt begins with that one's prompt and answer. Where
    `think_s` is there, it may be sent that long after the answer; `arrival_s` is then what comes of it at a steady
    pace of reading. `blocks` holds the ids of a prompt's blocks of `block_tokens`; an id stands for its whole prefix.
    """

    name: str
    source: str  # where it comes from and what was assumed, in a sentence or two
    arrival_s: NDArray[np.float64]  # [n], ascending
    prompt: NDArray[np.int64]  # [n], at least 1
    output: NDArray[np.int64]  # [n], at least 1
    seconds: float  # its length
    blocks: tuple[tuple[int, ...], ...] | None = None
    block_tokens: int = 0
    whole_blocks: bool = False  # whether `blocks` are full ones only, and go on with what was generated
    session: NDArray[np.int64] | None = None  # [n]
    think_s: NDArray[np.float64] | None = None  # [n], 0 for the first of a session
    adapter: NDArray[np.int64] | None = None  # [n]
    priority: NDArray[np.int64] | None = None  # [n], lower goes first

    def __post_init__(self) -> None:
        n = len(self.arrival_s)
        columns = (self.prompt, self.output, self.blocks, self.session, self.think_s, self.adapter, self.priority)
        if any(column is not None and len(column) != n for column in columns):
            raise UsageError(
                f"The columns of workload {self.name!r} differ in length.", "Give one value for each request."
            )
        if not n:
            raise UsageError(f"Workload {self.name!r} holds no requests.", "Give it a longer time or a higher rate.")
        if (self.arrival_s[1:] < self.arrival_s[:-1]).any():
            raise UsageError(f"The arrivals of workload {self.name!r} are out of order.", "Sort the requests.")
        if self.prompt.min() < 1 or self.output.min() < 1:
            raise UsageError(f"A request of workload {self.name!r} lacks tokens.", "Give each at least 1 and 1.")

    @property
    def requests(self) -> int:
        return len(self.arrival_s)

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds if self.seconds > 0 else float("inf")

    def until(self, seconds: float) -> LLMWorkload:
        """The same workload, cut off after `seconds`."""
        import numpy as np

        return self.taking(np.flatnonzero(self.arrival_s < seconds), seconds=min(seconds, self.seconds))

    def scaled(self, rate: float) -> LLMWorkload:
        """The same requests at `rate` a second: time is stretched or squeezed. Within sessions it is not."""
        import numpy as np

        if not 0 < rate < float("inf"):
            raise UsageError(f"{rate} requests a second is no rate.", "Give a number above zero.")
        factor = self.rate / rate
        begun = self.arrival_s
        if self.session is not None:
            _, first, which = np.unique(self.session, return_index=True, return_inverse=True)
            begun = self.arrival_s[first][which]
        arrival_s = self.arrival_s + begun * (factor - 1.0)
        order = np.argsort(arrival_s, kind="stable")
        return self.taking(order, arrival_s=arrival_s[order], seconds=self.seconds * factor)

    def thinned(self, n: int) -> LLMWorkload:
        """n of the requests, evenly taken from all over the workload. Sessions stay whole, which makes it about n."""
        import numpy as np

        if n < 1:
            raise UsageError(f"{n} requests are none.", "Keep at least 1.")
        if n >= self.requests:
            return self
        if self.session is None:
            return self.taking(np.arange(n) * self.requests // n)
        ids, first = np.unique(self.session, return_index=True)
        count = max(1, round(len(ids) * n / self.requests))
        kept = ids[np.argsort(first)][np.arange(count) * len(ids) // count]
        return self.taking(np.flatnonzero(np.isin(self.session, kept)))

    def taking(self, index: NDArray[np.intp], **changes: Any) -> LLMWorkload:
        """The requests at `index`, in that order; what else changes is given."""
        names = ("arrival_s", "prompt", "output", "session", "think_s", "adapter", "priority")
        taken = {name: None if (of := getattr(self, name)) is None else of[index] for name in names}
        blocks = None if self.blocks is None else tuple(self.blocks[i] for i in index.tolist())
        return replace(self, **{**taken, "blocks": blocks, **changes})

    def with_blocks(self, tokens: int = 16) -> LLMWorkload:
        """Block ids for what requests of a session share: block j of a session's text is the same in all its turns.

        Requests without a session share nothing.
        """
        if tokens < 1:
            raise UsageError(f"Blocks of {tokens} tokens hold nothing.", "Use at least 1.")
        whose = range(self.requests) if self.session is None else self.session.tolist()
        counts = (-(-self.prompt // tokens)).tolist()
        longest: dict[int, int] = {}
        for session, count in zip(whose, counts, strict=True):
            longest[session] = max(longest.get(session, 0), count)
        start, total = {}, 0
        for session, count in longest.items():
            start[session], total = total, total + count
        blocks = tuple(tuple(range(start[s], start[s] + count)) for s, count in zip(whose, counts, strict=True))
        return replace(self, blocks=blocks, block_tokens=tokens)


def load_llm(path_or_name: str | Path, *, seed: int = 0, **options: Any) -> LLMWorkload:
    """A workload from a file, from a name below the folder that NUBES_TRACES names, or from a generator.

    `azure-llm-2023`, `./my.csv`, `mooncake(limit=32768)`, `sharegpt(rate=4,cv=2)`, `chat-like(rate=2,length=10m)`,
    `conversations(rate=1,think=60s)`. Of a trace, `limit` drops requests with more tokens in all; `rate` sets requests
    a second, `cv` how bursty they are and `n` how many there are, where the trace holds lengths alone. `seed` draws
    what a trace does not hold. Raises `NotFound` or `UsageError`.
    """
    from nubes.llm.engine.recording import is_recording
    from nubes.llm.engine.recording import read as read_recording
    from nubes.workloads.llm_synthetic import GENERATORS
    from nubes.workloads.llm_traces import read_llm

    text = str(path_or_name)
    match = re.fullmatch(r"\s*([^()]+?)\s*\((.*)\)\s*", text)
    name, arguments = (match[1], match[2]) if match and not Path(text).expanduser().exists() else (text, "")
    if name in GENERATORS and not Path(name).exists():
        return made(GENERATORS[name], name, arguments, seed, options)
    path = _file(name)
    if is_recording(path):
        return made(lambda seed: read_recording(path).workload, name, arguments, seed, options)

    def read(
        seed: int, rate: float | None = None, cv: float | None = None, limit: int | None = None, n: int | None = None
    ) -> LLMWorkload:
        return read_llm(path, name, seed, rate, cv, limit, n)

    return made(read, name, arguments, seed, options)


def _file(text: str) -> Path:
    """The one trace that a name stands for."""
    from nubes.workloads.llm_synthetic import GENERATORS

    path = locate(text, GENERATORS)
    if path.is_file():
        return path
    files = sorted(file for file in path.iterdir() if file.suffix in (".csv", ".jsonl"))
    if len(files) != 1:
        named = f": {', '.join(file.name for file in files)}" if files else ""
        raise UsageError(f"{path} holds {len(files)} traces{named}.", f"Name one file. nubes reads {FORMATS}.")
    return files[0]
