"""The functions that the comparisons call."""

from __future__ import annotations

from typing import Any

import nubes

app = nubes.App("bench")


@app.function()
def noop(x: Any = None) -> Any:
    return x


@app.function()
def shape(array: Any) -> Any:
    return array.shape


@app.function(single_use=True, cpu=0.0, memory="1MiB")
def once(x: Any = None) -> Any:
    return x


@app.function(single_use=True)
def needs_torch(n: int) -> int:
    import torch

    return n + len(torch.__version__)
