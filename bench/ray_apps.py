"""One small application, written down once and declared three times: for nubes, for plain Ray, and for nubes.tasks."""

from __future__ import annotations

from typing import Any

import nubes


def noop(x: Any = None) -> Any:
    return x


def size(array: Any) -> int:
    return int(array.nbytes)


def made(numbers: int) -> Any:
    import numpy as np

    return np.ones(numbers)


class Counter:
    def __init__(self) -> None:
        self.total = 0

    def add(self, n: int) -> int:
        self.total += n
        return self.total


app = nubes.App("bench-ray")
cloud_noop, cloud_size, cloud_made = (app.function(cpu=0.5)(one) for one in (noop, size, made))


@app.function(single_use=True, cpu=0.0, memory="1MiB")
def once(x: Any = None) -> Any:
    return x


@app.cls(max_instances=1, cpu=0.5)
class CloudCounter:
    @nubes.enter()
    def start(self) -> None:
        self.inner = Counter()

    @nubes.method()
    def add(self, n: int) -> int:
        return self.inner.add(n)
