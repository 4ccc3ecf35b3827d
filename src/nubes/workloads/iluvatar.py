"""The iluvatar-faas format: timed invocations, and each function's cold and warm run time and memory."""

from __future__ import annotations

import csv
from pathlib import Path

from nubes.functions.spec import FunctionSpec
from nubes.kernel.errors import UsageError
from nubes.workloads.workload import Workload

TIMEOUT_S = 86_400.0  # the calls of the trace did end


def is_iluvatar(folder: Path) -> bool:
    path = folder / "functions.csv"
    if not path.is_file() or not (folder / "invocations.csv").is_file():
        return False
    with path.open() as file:
        return file.readline().startswith("func_name,cold_dur_ms,warm_dur_ms,mem_mb")


def load_iluvatar(folder: Path, name: str = "") -> Workload:
    """Reads `functions.csv` (func_name, cold_dur_ms, warm_dur_ms, mem_mb) and `invocations.csv` (func_name,
    invoke_time_ms).

    Every call runs for its function's warm time; a start takes the cold time less the warm time. Nothing is random.
    """
    import numpy as np

    with (folder / "functions.csv").open(newline="") as file:
        functions = list(csv.DictReader(file))
    index = {row["func_name"]: i for i, row in enumerate(functions)}
    with (folder / "invocations.csv").open(newline="") as file:
        calls = [(float(row["invoke_time_ms"]), row["func_name"]) for row in csv.DictReader(file)]
    missing = sorted({function for _, function in calls} - set(index))
    if missing:
        raise UsageError(f"{folder}/functions.csv does not describe {', '.join(missing[:3])}.", "Add a row for each.")
    function = np.array([index[name] for _, name in calls], dtype=np.int32)
    arrival_s = np.array([at for at, _ in calls]) / 1000.0
    order = np.argsort(arrival_s, kind="stable")
    warm_s = np.array([float(row["warm_dur_ms"]) for row in functions]) / 1000.0
    cold_s = np.array([float(row["cold_dur_ms"]) for row in functions]) / 1000.0
    specs = tuple(
        FunctionSpec(
            name=f"{row['func_name']}/{row['func_name']}",
            memory_bytes=int(float(row["mem_mb"]) * 2**20),
            timeout_s=TIMEOUT_S,
            startup_timeout_s=TIMEOUT_S,
        )
        for row in functions
    )
    source = (
        f"iluvatar-faas, {len(specs)} functions: measured warm times; a start takes the cold time less the warm time."
    )
    return Workload(
        name or folder.name,
        source,
        specs,
        arrival_s[order],
        function[order],
        warm_s[function[order]],
        tuple(np.array([seconds]) for seconds in np.maximum(cold_s - warm_s, 0.0)),
        float(np.ceil(arrival_s.max())) if len(calls) else 0.0,
    )
