"""Functions that share dicts, queues, volumes and secrets, for the tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nubes

app = nubes.App("storage")
counts = nubes.Dict.from_name("counts", create_if_missing=True)
WHERE = os.environ.get("TEST_MOUNT", "/nowhere")


@app.function()
def count(word: str) -> None:
    counts[word] = counts.get(word, 0) + 1


@app.function()
def forward(source: nubes.Queue, target: nubes.Queue) -> Any:
    """Takes one item, as soon as there is one, and hands it on."""
    item = source.get(timeout=20)
    target.put(("seen", item))
    return item


@app.function()
def claim(name: str) -> bool:
    return counts.put("winner", name, skip_if_exists=True)


@app.function(
    secrets=[nubes.Secret.from_name("kept", required_keys=["TOKEN"]), nubes.Secret.from_dict({"OTHER": "x y"})]
)
def told() -> tuple[str, str]:
    return os.environ["TOKEN"], os.environ["OTHER"]


@app.function()
def not_told() -> list[str]:
    return [name for name in ("TOKEN", "OTHER") if name in os.environ]


@app.function(volumes={WHERE: nubes.Volume.from_name("shared", create_if_missing=True)})
def write(where: str, name: str, text: str) -> list[str]:
    (Path(where) / name).write_text(text)
    return sorted(os.listdir(where))
