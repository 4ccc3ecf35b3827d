"""Pods and nodes of a shared GPU cluster: Alibaba's cluster-trace-gpu-v2023 ("openb")."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import msgspec

VARIABLE = "NUBES_TRACES"
FOLDER = "alibaba-gpu-2023"
MIB = 2**20


class Pod(msgspec.Struct, frozen=True):
    """What a pod asked for, and when. A share of a GPU is a fraction; several are whole."""

    name: str
    cpu: float
    memory_bytes: int
    gpu: float
    qos: str  # LS (latency-sensitive), BE (best effort), Burstable or Guaranteed
    arrival_s: float
    seconds: float  # from creation to deletion


class Node(msgspec.Struct, frozen=True):
    name: str
    cpu: float
    memory_bytes: int
    gpu: int
    model: str  # of its GPUs; "": none


def folder() -> Path | None:
    """Where the trace is, below the folder that NUBES_TRACES names; None without it."""
    root = os.environ.get(VARIABLE, "")
    path = Path(root) / FOLDER
    return path if root and path.is_dir() else None


def pods(path: Path) -> list[Pod]:
    """All pods, in the order of their creation."""
    with open(path / "pods_default.csv", newline="") as file:
        made = [
            Pod(
                row["name"],
                int(row["cpu_milli"]) / 1000,
                int(row["memory_mib"]) * MIB,
                int(row["num_gpu"] or 0) * int(row["gpu_milli"] or 0) / 1000,
                row["qos"],
                float(row["creation_time"]),
                max(0.0, float(row["deletion_time"] or row["creation_time"]) - float(row["creation_time"])),
            )
            for row in csv.DictReader(file)
        ]
    return sorted(made, key=lambda pod: (pod.arrival_s, pod.name))


def nodes(path: Path) -> list[Node]:
    """All nodes, those without GPUs too."""
    with open(path / "nodes.csv", newline="") as file:
        return [
            Node(
                row["sn"],
                int(row["cpu_milli"]) / 1000,
                int(row["memory_mib"]) * MIB,
                int(row["gpu"] or 0),
                row["model"],
            )
            for row in csv.DictReader(file)
        ]
