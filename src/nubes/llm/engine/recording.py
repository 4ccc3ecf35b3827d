"""What a live engine did, in a file: every step with its load and time, every answer with its lengths and times.

A file of JSON lines: first what the engine was, then steps as `["step", seconds, [load ...]]` and answers as
`{"type": "answer", ...}`, in the order in which they ended. Times are seconds of any clock that goes on evenly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from nubes.kernel.errors import UsageError
from nubes.llm.scheduling.load import Load

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nubes.llm.engine.local import LocalEngine
    from nubes.llm.models.cpu import Cpu
    from nubes.llm.scheduling.sequence import Sequence
    from nubes.workloads.llm import LLMWorkload

HALF = 2  # bytes of a number in KV, as a rule
MARK = b'{"type":"llm-recording"'  # how every recording begins


class About(msgspec.Struct, frozen=True, kw_only=True, tag="llm-recording"):
    """The engine that was recorded. `policies` are texts by seam."""

    model: str
    blocks: int
    block_size: int
    policies: dict[str, str] = {}
    kv_bytes: int = 0  # of one token


class Answer(msgspec.Struct, frozen=True, kw_only=True, tag="answer", omit_defaults=True):
    """One answer to one prompt. `keys` are of its full blocks, what was generated included."""

    arrived_s: float
    first_s: float
    end_s: float
    prompt: int
    output: int
    cached: int = 0
    preemptions: int = 0
    keys: list[int] = []
    session: str = ""
    adapter: str = ""
    priority: int = 0
    finish: str = "stop"


class _Step(msgspec.Struct, frozen=True, array_like=True, tag="step"):
    seconds: float
    load: tuple[int, ...]


class _Guesses(msgspec.Struct, frozen=True, tag="guesses"):
    """By sequence and depth: how many guesses stood beside each other, and the rank of the one that held, or -1."""

    paths: list[list[tuple[int, int]]]


class Recorder:
    """Writes a recording. To be called from one thread, that of the engine's steps."""

    def __init__(self, path: str | Path, about: About) -> None:
        self._file = Path(path).open("wb")
        self._encoder = msgspec.json.Encoder()
        self._write(about)
        self._file.flush()

    def step(self, load: Load, seconds: float) -> None:
        """A step ended. `seconds`: since the one before, or since there was something to do again."""
        self._write(_Step(seconds, msgspec.structs.astuple(load)))

    def guesses(self, paths: list[list[tuple[int, int]]]) -> None:
        """What came of a step's guesses; () of a sequence for which there was nothing to guess."""
        self._write(_Guesses(paths))

    def request(self, sequence: Sequence, end_s: float, finish: str = "stop") -> None:
        """A sequence got its last token, or was given up. What ended is on disk when this returns."""
        if not sequence.generated:
            return  # nothing came of it
        answer = Answer(
            arrived_s=sequence.arrived_s, first_s=sequence.first_s, end_s=end_s, prompt=sequence.prompt,
            output=sequence.generated, cached=sequence.cached, preemptions=sequence.preemptions,
            keys=[_number(key) for key in sequence.keys], session=sequence.session, adapter=sequence.adapter,
            priority=sequence.priority, finish=finish,
        )  # fmt: skip
        self._write(answer)
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, line: msgspec.Struct) -> None:
        self._file.write(self._encoder.encode(line) + b"\n")


def record(engine: LocalEngine, path: str | Path) -> Recorder:
    """From now on all that an engine does is written to `path`; close the recorder after the engine."""
    scheduler, shape = engine.scheduler, engine.runtime.shape
    seams = (scheduler.batching, scheduler.ordering, scheduler.preemption, scheduler.retention, scheduler.speculation)
    about = About(
        model=engine.name, blocks=engine.runtime.blocks, block_size=engine.runtime.block_size,
        policies={policy.seam: policy.text for policy in seams},
        kv_bytes=HALF * shape.kv_values,
    )  # fmt: skip
    engine.recorder = Recorder(path, about)
    return engine.recorder


@dataclass(frozen=True, eq=False)
class Recording:
    """A recording that was read; answers by arrival."""

    path: Path
    about: About
    steps: list[tuple[Load, float]]
    answers: list[Answer]
    hits: tuple[tuple[float, ...], ...] = ()  # how often guesses held, by depth and rank; (): there were none

    @cached_property
    def workload(self) -> LLMWorkload:
        """The requests as they came, and the KV that they had in common."""
        import numpy as np

        from nubes.workloads.llm import LLMWorkload

        def numbers(texts: list[str]) -> NDArray[np.int64] | None:
            known: dict[str, int] = {}
            return np.array([known.setdefault(text, len(known)) for text in texts]) if any(texts) else None

        answers = self.answers
        arrived_s = self.column("arrived_s")
        return LLMWorkload(
            self.path.name,
            f"Recorded from {self.about.model}: {len(answers):,} answers as they came.",
            arrived_s - arrived_s[0],
            np.array([answer.prompt for answer in answers]),
            np.array([answer.output for answer in answers]),
            float(arrived_s[-1] - arrived_s[0]),
            blocks=tuple(tuple(answer.keys) for answer in answers) if any(a.keys for a in answers) else None,
            block_tokens=self.about.block_size,
            whole_blocks=True,
            session=numbers([answer.session for answer in answers]),
            adapter=numbers([answer.adapter for answer in answers]),
            priority=np.array([answer.priority for answer in answers]),
        )

    @property
    def ttft_s(self) -> NDArray[np.float64]:
        """As measured, of each answer."""
        return self.column("first_s") - self.column("arrived_s")

    @property
    def tpot_s(self) -> NDArray[np.float64]:
        """As measured, of each answer of two tokens or more."""
        output = self.workload.output
        several = output > 1
        return (self.column("end_s") - self.column("first_s"))[several] / (output[several] - 1)

    def column(self, name: str) -> NDArray[np.float64]:
        import numpy as np

        return np.array([getattr(answer, name) for answer in self.answers], np.float64)

    def fit(self) -> Cpu:
        """A step model of the machine that was recorded. Raises `UsageError` if its steps give none."""
        from nubes.llm.models.cpu import fit

        about = self.about
        return fit(
            self.steps, self.path.name, kv_tokens=about.blocks * about.block_size, kv_bytes=about.kv_bytes
        )  # fmt: skip


def is_recording(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(MARK)) == MARK
    except OSError:
        return False


def read(path: str | Path) -> Recording:
    """Reads a recording; a last line that was cut short is left out. Raises `UsageError` naming file and line."""
    path = Path(path).expanduser()
    if not is_recording(path):
        raise UsageError(f"{path} is no recording of an LLM.", "Name a file that a `Recorder` wrote.")
    lines = path.read_bytes().splitlines(keepends=True)
    about = msgspec.json.decode(lines[0], type=About)
    other_of, step_of = msgspec.json.Decoder(Answer | _Guesses).decode, msgspec.json.Decoder(_Step).decode
    steps: list[tuple[Load, float]] = []
    answers: list[Answer] = []
    paths: list[list[tuple[int, int]]] = []
    for number, line in enumerate(lines[1:], 2):
        if not line.endswith(b"\n"):
            break
        try:
            if line.startswith(b"["):
                step = step_of(line)
                steps.append((Load(*step.load), step.seconds))
            else:
                other = other_of(line)
                if isinstance(other, Answer):
                    answers.append(other)
                else:
                    paths += other.paths
        except (msgspec.DecodeError, TypeError) as error:
            raise UsageError(f"{path}, line {number}: {error}.", "Is the file whole?") from None
    if not answers:
        raise UsageError(f"{path} holds no answers.", "Ask the model something while it is recorded.")
    answers.sort(key=lambda answer: answer.arrived_s)
    return Recording(path, about, steps, answers, rates(paths))


def rates(paths: list[list[tuple[int, int]]]) -> tuple[tuple[float, ...], ...]:
    """How often the guess of each depth and rank held, where all before it did."""
    tried: list[list[int]] = []
    held: list[list[int]] = []
    for path in paths:
        for depth, (width, rank) in enumerate(path or [(1, -1)]):
            if depth == len(tried):
                tried.append([])
                held.append([])
            more = width - len(tried[depth])
            tried[depth] += [0] * more
            held[depth] += [0] * more
            for nth in range(width):
                tried[depth][nth] += 1
                held[depth][nth] += nth == rank
    return tuple(tuple(h / t for h, t in zip(*of, strict=True)) for of in zip(held, tried, strict=True))


def _number(key: Any) -> int:
    """Of a block's key, which is a digest."""
    return key if isinstance(key, int) else int.from_bytes(key[:7], "big")
