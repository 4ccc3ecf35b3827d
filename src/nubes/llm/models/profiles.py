"""Published profiles: found below the folder that NUBES_TRACES names, or the few figures that are shipped."""

from __future__ import annotations

import csv
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from nubes.kernel.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VARIABLE = "NUBES_TRACES"
FOLDER = "llm-step-profiles"

# Time of a whole model's matrices in ms against rows, without attention and all-reduce (Vidur's profiles, add twice).
SUMS_ROWS = (1, 128, 256, 512, 1024, 2048, 4096)
SUMS_MS = {
    ("llama-2-7b", "a100", 1): (9.3, 12.3, 17.9, 33.6, 68.3, 134, 260),
    ("llama-3-8b", "a100", 1): (9.8, 13.3, 19.6, 34.9, 75.6, 146, 275),
    ("llama-2-70b", "a100", 8): (14.3, 18.9, 30.9, 52.8, 94.6, 188, 356),
    ("llama-2-70b", "h100", 8): (8.4, 10.2, 11.8, 18.2, 33.8, 66.1, 127),
    ("llama-2-7b", "h100", 1): (5.6, 6.4, 9.3, 12.1, 21.3, 40.8, 84.5),
}
LAYER_OPS = (
    "input_layernorm",
    "attn_pre_proj",
    "attn_rope",
    "attn_post_proj",
    "post_attention_layernorm",
    "mlp_up_proj",
    "mlp_act",
    "mlp_down_proj",
    "add",
)


def find(*parts: str) -> Path | None:
    """A profile's file, if traces are there and hold it."""
    traces = os.environ.get(VARIABLE)
    path = Path(traces, FOLDER, *parts) if traces else None
    return path if path is not None and path.is_file() else None


def need(*parts: str) -> Path:
    path = find(*parts)
    if path is None:
        traces = os.environ.get(VARIABLE)
        where = f"{Path(traces, FOLDER)} does not hold it" if traces else f"{VARIABLE} names no folder of traces"
        raise UsageError(
            f"This step model needs the profile {'/'.join(parts)}, and {where}.", "Fetch it, or use another."
        )
    return path


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def linear_files() -> list[tuple[str, str]]:
    """(LLM, GPU) of the profiles that are there."""
    traces = os.environ.get(VARIABLE)
    found = Path(traces, FOLDER, "vidur").glob("*/*/mlp.csv") if traces else ()
    return sorted((path.parent.name, path.parent.parent.name) for path in found)


@cache
def layer_ms(path: Path, tp: int, adds: int) -> tuple[NDArray[np.int64], NDArray[np.float64], int]:
    """Medians of one layer's operations summed, `add` counted `adds` times: rows ascending, ms, and their number.

    Rows that were measured twice count with their mean.
    """
    import numpy as np

    table = [row for row in read(path) if row["num_tensor_parallel_workers"] == str(tp)]
    if not table:
        raise UsageError(f"{path} holds no measurements with tp={tp}.", "Use 1, 2, 4 or 8.")
    weight = {op: adds if op == "add" else 1 for op in LAYER_OPS}
    rows, which = np.unique([int(row["num_tokens"]) for row in table], return_inverse=True)
    ms = [sum(n * float(row[f"time_stats.{op}.median"]) for op, n in weight.items()) for row in table]
    return rows, np.bincount(which, ms) / np.bincount(which), len(table)


@cache
def all_reduce_ms(path: Path, workers: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Bytes ascending, and the median time of an all-reduce of them among `workers` of one node."""
    import numpy as np

    table = [row for row in read(path) if row["num_workers"] == row["devices_per_node"] == str(workers)]
    if not table:
        raise UsageError(f"{path} holds no all-reduce among {workers} devices.", "Use 2, 4 or 8.")
    size, which = np.unique([int(row["size"]) for row in table], return_inverse=True)
    ms = [float(row["time_stats.all_reduce.median"]) for row in table]
    return size, np.bincount(which, ms) / np.bincount(which)


def stretch(x: NDArray[np.int64], y: NDArray[np.float64], upto: int) -> list[float]:
    """y at 0, 1, ... `upto`: straight lines between the points; beyond the last, the slope of their upper half."""
    import numpy as np

    at = np.arange(upto + 1)
    half = x[-1] / 2
    slope = (y[-1] - np.interp(half, x, y)) / (x[-1] - half)
    values: list[float] = (np.interp(at, x, y) + slope * np.maximum(at - x[-1], 0)).tolist()
    return values
