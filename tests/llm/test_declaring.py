"""LLMs that are declared: words that mean nothing are errors at once, and memory is counted for all engines."""

from __future__ import annotations

from typing import Any

import pytest

import nubes
from nubes.api.llm import OVERHEAD_BYTES
from nubes.kernel.errors import NubesError, UnknownPolicy, UsageError


def declared(**options: Any) -> Any:
    return nubes.App("declared").llm("smollm2-135m", **options)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"replicas": 2, "routing": "lumnix"}, UnknownPolicy, "llumnix"),
        ({"replicas": 2, "migration": "llumnix(speed=3)"}, UsageError, "speed"),
        ({"replicas": 2, "migration": 'llumnix(way=swim)'}, UsageError, "swim"),
        ({"scaling": "more"}, UnknownPolicy, "more"),
        ({"batching": "sarathy"}, UnknownPolicy, "sarathi"),
        ({"replicas": 0}, UsageError, "replicas=0"),
        ({"replicas": 17}, UsageError, "1 to 16"),
        ({"replicas": "two"}, NubesError, "replicas"),
        ({"routing": "round-robin"}, UsageError, "replicas=2"),
        ({"prefill_replicas": 1}, UsageError, "replicas=2"),
        ({"replicas": 2, "prefill_replicas": 2}, UsageError, "fewer than replicas"),
        ({"replicas": 2, "prefill_replicas": 1, "scaling": "freeness(most=4)"}, UsageError, "prefill_replicas"),
        ({"replicas": 2, "scaling": "freeness(most=99)"}, UsageError, "most=16"),
        ({"replicas": 2, "adapters": {"a": "folder"}, "migration": "llumnix"}, UsageError, "adapters"),
        ({"replicas": 2, "adapters": {"a": "folder"}, "prefill_replicas": 1}, UsageError, "adapters"),
        ({"replicas": 2, "device": "cuda"}, UsageError, 'device="cpu"'),
        ({"replicas": 2, "format": "bf16"}, UsageError, "int8"),
    ],
)  # fmt: skip
def test_wrong_words(options: dict[str, Any], error: type[NubesError], match: str) -> None:
    with pytest.raises(error, match=match):
        declared(**options)


@pytest.mark.parametrize(
    ("options", "engines"),
    [({}, 1), ({"replicas": 3}, 3), ({"replicas": 2, "scaling": "freeness(most=5)"}, 5)],
)
def test_memory_is_that_of_all_engines(options: dict[str, Any], engines: int) -> None:
    made = declared(kv_memory="64MiB", **options)
    assert made.declared.spec.memory_bytes == engines * ((64 << 20) + OVERHEAD_BYTES)


def test_memory_can_be_given() -> None:
    assert declared(replicas=2, memory="3GiB").declared.spec.memory_bytes == 3 << 30
