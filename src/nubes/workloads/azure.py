"""Azure Functions 2019: per-minute counts, duration percentiles and memory (Shahrad et al., USENIX ATC 2020)."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from nubes.functions.spec import FunctionSpec
from nubes.kernel.errors import UsageError
from nubes.workloads.draws import generator, starts
from nubes.workloads.workload import Workload

SHORTEST_S = 1e-4  # durations are published in whole milliseconds; 0 is no time a call can take
DEFAULT_MB = 170.0  # of an app without a memory record: half of all apps allocate at most this
TIMEOUT_S = 86_400.0  # the calls of the trace did end
CALLS_MAX = 100_000_000
QUANTILES = (0, 1, 25, 50, 75, 99, 100)


def is_azure(folder: Path) -> bool:
    return bool(_files(folder, "invocations")) and bool(_files(folder, "durations"))


def load_azure(
    folder: Path, name: str = "", *, seed: int = 0, arrivals: str = "uniform", start_s: float | None = None
) -> Workload:
    """Reads `*invocations*.csv` (HashApp, HashFunction, Trigger, then a column for each minute), `*durations*.csv`
    (percentiles of milliseconds) and, if there, `*memory*.csv` (average MB), as published or as samples of it.

    What the trace does not hold is drawn from `seed`. Within its minute a call arrives at any instant
    (`arrivals="uniform"`), or calls are equally far apart, at a phase of the function's own (`"equidistant"`).
    Durations follow the straight line between percentiles. Memory is the app's average allocation. Azure publishes no
    cold-start times: each start takes `start_s`, or by default a draw from Huawei's LogNormal fit (mean 3.24 s,
    standard deviation 7.10 s).
    """
    import numpy as np

    if arrivals not in ("uniform", "equidistant"):
        raise UsageError(f"{arrivals!r} is no way to place arrivals.", "Use uniform or equidistant.")
    header, rows = _invocations(_one(folder, "invocations"))
    first = next((i for i, column in enumerate(header) if column.isdigit()), len(header))
    minutes = len(header) - first
    app, function, trigger = (header.index(column) for column in ("HashApp", "HashFunction", "Trigger"))
    counts = np.array([row[first:] for row in rows], dtype=np.int64)
    if counts.sum() > CALLS_MAX:
        raise UsageError(f"{folder} holds {counts.sum():,} calls; at most {CALLS_MAX:,} fit.", "Give a sample of it.")
    curves = _curves(_one(folder, "durations"))
    memory = _memory(folder)
    names = _names([(row[app], row[function]) for row in rows])
    specs, samples, columns = [], [], []
    for index, row in enumerate(rows):
        key = (row[app], row[function])
        if key not in curves:
            raise UsageError(f"{folder} has no durations for function {row[function]}.", "Sample both files alike.")
        draw = generator(seed, "azure", *key)
        when = _arrivals(draw, counts[index], arrivals)
        took = np.interp(draw.random(len(when)) * 100.0, QUANTILES, curves[key]) / 1000.0
        columns.append((when, np.full(len(when), index, np.int32), np.maximum(took, SHORTEST_S)))
        megabytes = memory.get(row[function]) or memory.get(row[app]) or DEFAULT_MB
        specs.append(
            FunctionSpec(
                name=names[index],
                trigger=row[trigger],
                memory_bytes=int(megabytes * 2**20),
                timeout_s=TIMEOUT_S,
                startup_timeout_s=TIMEOUT_S,
            )
        )
        samples.append(starts(seed, names[index], start_s))
    arrival_s, functions, exec_s = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    order = np.argsort(arrival_s, kind="stable")
    cold = (
        f"each start takes {start_s:g} s"
        if start_s is not None
        else "start times are drawn from Huawei's LogNormal fit"
    )
    source = (
        f"Azure Functions 2019, {len(specs)} functions, {minutes} minutes. Arrivals within a minute are {arrivals}, "
        f"durations follow the published percentiles; Azure publishes no cold-start times: {cold} (seed {seed})."
    )
    return Workload(
        name or folder.name, source, tuple(specs), arrival_s[order], functions[order], exec_s[order], tuple(samples),
        minutes * 60.0,
    )  # fmt: skip


def _arrivals(draw: Any, counts: Any, how: str) -> Any:
    import numpy as np

    minute = np.repeat(np.arange(len(counts)), counts)
    if how == "uniform":
        within = draw.random(len(minute))
    else:
        nth = np.arange(len(minute)) - np.repeat(np.cumsum(counts) - counts, counts)
        within = (nth + draw.random()) / np.repeat(counts, counts)
    return np.sort((minute + within) * 60.0)


def _files(folder: Path, kind: str) -> list[Path]:
    return sorted(folder.glob(f"*{kind}*.csv"))


def _one(folder: Path, kind: str) -> Path:
    files = _files(folder, kind)
    if len(files) != 1:
        raise UsageError(f"{folder} holds {len(files)} files named *{kind}*.csv.", "Keep those of one day in it.")
    return files[0]


def _invocations(path: Path) -> tuple[list[str], list[list[str]]]:
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    return header, rows


def _curves(path: Path) -> dict[tuple[str, str], list[float]]:
    """(app, function) -> milliseconds at `QUANTILES`."""
    with path.open(newline="") as file:
        return {
            (row["HashApp"], row["HashFunction"]): [float(row[f"percentile_Average_{q}"]) for q in QUANTILES]
            for row in csv.DictReader(file)
        }


def _memory(folder: Path) -> dict[str, float]:
    """Average MB by function where the file names functions, and by app."""
    if not _files(folder, "memory"):
        return {}
    known: dict[str, float] = {}
    with _one(folder, "memory").open(newline="") as file:
        for row in csv.DictReader(file):
            known[row["HashApp"]] = known[row.get("HashFunction", row["HashApp"])] = float(row["AverageAllocatedMb"])
    return known


def _names(keys: list[tuple[str, str]]) -> list[str]:
    """`app/function` with hashes shortened to ten digits, where that still tells them apart."""
    for digits in (10, 64):
        names = [f"{app[:digits]}/{function[:digits]}" for app, function in keys]
        apps = {app[:digits] for app, _ in keys}
        if len(set(names)) == len(names) and len(apps) == len({app for app, _ in keys}):
            return names
    raise UsageError("The trace names a function twice.", "Keep one row for each function.")
