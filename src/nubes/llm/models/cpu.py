"""STEP-CPU: a step model fitted to an engine's own log of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import msgspec

from nubes.kernel.errors import UsageError
from nubes.llm.scheduling.load import Load

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WORST = 0.10  # median relative error up to which a fit may be used
FEWEST = 20  # steps that a fit needs


class _Saved(msgspec.Struct):
    name: str
    coefficients: tuple[float, float, float, float, float]
    error: float
    steps: int
    kv_tokens: int
    kv_bytes: int
    weight_bytes: int


@dataclass(frozen=True, slots=True)
class Cpu:
    """a + b * rows + c * (sum of chunk^2 + 2 * chunk * context) + d * KV tokens of decodes + e * sequences."""

    name: str
    coefficients: tuple[float, float, float, float, float]
    error: float  # median relative error on the log that it was fitted to
    steps: int
    kv_tokens: int
    kv_bytes: int = 0
    weight_bytes: int = 0
    gpu: str = "cpu"
    devices: int = 1
    stages: int = 1

    def __post_init__(self) -> None:
        if not self.error <= WORST:
            raise UsageError(
                f"The step model {self.name!r} misses half of its own steps by {self.error:.1%} or more.",
                f"At most {WORST:.0%} is good enough: log more steps of more kinds, on a quieter machine.",
            )

    def seconds(self, load: Load) -> float:
        a, b, c, d, e = self.coefficients
        return (
            a
            + b * (load.prefill_rows + load.decodes)
            + c * (load.prefill_squares + 2 * load.prefill_pairs)
            + d * load.decode_context
            + e * (load.prefills + load.decodes)
        )

    def describe(self) -> str:
        return f"{self.name}: fitted to {self.steps:,} steps measured here, median relative error {self.error:.1%}."

    def save(self, path: str | Path) -> None:
        fields = {field: getattr(self, field) for field in _Saved.__struct_fields__}
        Path(path).write_bytes(msgspec.json.format(msgspec.json.encode(_Saved(**fields))) + b"\n")


def cpu(path: str | Path) -> Cpu:
    """A fit that was saved, or one to the steps of a recording. Raises `UsageError`."""
    from nubes.llm.engine.recording import is_recording, read

    if is_recording(Path(path).expanduser()):
        return read(path).fit()
    try:
        saved = msgspec.json.decode(Path(path).expanduser().read_bytes(), type=_Saved)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.", "Name a saved fit, or a recording.") from None
    except msgspec.DecodeError as error:
        raise UsageError(f"{path} is no saved step model: {error}.", "Name a saved fit, or a recording.") from None
    return Cpu(**msgspec.structs.asdict(saved))


def fit(
    log: Sequence[tuple[Load, float]], name: str = "cpu", *, kv_tokens: int, kv_bytes: int = 0, weight_bytes: int = 0
) -> Cpu:
    """Least squares on the relative error of (load, seconds) rows, with no coefficient below zero.

    Raises `UsageError` if there are few steps, or if the median relative error exceeds 10 %.
    """
    import numpy as np

    if len(log) < FEWEST:
        raise UsageError(f"{len(log)} steps are too few to fit a step model to.", f"Log at least {FEWEST}.")
    took = np.array([seconds for _, seconds in log])
    if not (np.isfinite(took) & (took > 0)).all():
        raise UsageError("A step of the log took no time, or no finite time.", "Leave such steps out.")
    terms = np.array(
        [
            (1.0, at.rows, at.prefill_squares + 2 * at.prefill_pairs, at.decode_context, at.prefills + at.decodes)
            for at, _ in log
        ]
    )
    solved = nonnegative(terms / took[:, None], np.ones(len(log)))
    error = median(np.abs(terms @ solved / took - 1.0).tolist())
    a, b, c, d, e = solved.tolist()
    return Cpu(name, (a, b, c, d, e), error, len(log), kv_tokens, kv_bytes, weight_bytes)


def nonnegative(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """x >= 0 with the least |a x - b|, for few columns.

    The answer solves the plain problem on its own support, so the best of all supports without a negative entry is it.
    """
    import numpy as np

    scale = np.linalg.norm(a, axis=0)
    scale[scale == 0.0] = 1.0
    best, least = np.zeros(a.shape[1]), float(b @ b)
    for size in range(1, a.shape[1] + 1):
        for support in map(list, combinations(range(a.shape[1]), size)):
            part = np.linalg.lstsq(a[:, support] / scale[support], b, rcond=None)[0]
            off = a[:, support] / scale[support] @ part - b
            if (part >= 0.0).all() and off @ off < least:
                least, best = float(off @ off), np.zeros(a.shape[1])
                best[support] = part / scale[support]
    return best
