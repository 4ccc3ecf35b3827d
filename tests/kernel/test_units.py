"""Units are read and shown the way people write them."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nubes.kernel.errors import UsageError
from nubes.kernel.units import seconds, show_bytes, show_seconds, size_bytes


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5m", 300.0),
        ("1.5h", 5400.0),
        (" 10 min ", 600.0),
        ("250ms", 0.25),
        ("2us", 2e-06),
        ("3µs", 3e-06),
        ("7s", 7.0),
        ("2d", 172800.0),
        ("1w", 604800.0),
        (".5s", 0.5),
        (3, 3.0),
        (0, 0.0),
        (2.5, 2.5),
        (math.inf, math.inf),
    ],
)
def test_durations(text: Any, value: float) -> None:
    assert seconds(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["5", "", "m", "5 parsecs", "-5m", "5m3s", "1e3s", "5M", -1, -0.1, math.nan, True])
def test_what_is_no_duration_says_how_to_write_one(text: Any) -> None:
    with pytest.raises(UsageError, match="keep"):
        seconds(text, "keep")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4GiB", 4 << 30),
        ("512MiB", 512 << 20),
        ("1kB", 1000),
        ("1KB", 1000),
        ("2KiB", 2048),
        ("7B", 7),
        ("1.5MiB", 3 << 19),
        ("1TB", 10**12),
    ],
)
def test_sizes(text: str, value: int) -> None:
    assert size_bytes(text) == value


@pytest.mark.parametrize("text", ["4", 4, 4.0, "4G", "GiB", "-1GiB", "4gib", None])
def test_a_size_needs_a_unit(text: Any) -> None:
    with pytest.raises(UsageError, match="memory"):
        size_bytes(text, "memory")


@given(st.floats(0, 1e12, allow_subnormal=False))
def test_what_is_shown_of_a_duration_is_that_duration(value: float) -> None:
    assume(value == 0 or value > 1e-12)
    shown = show_seconds(value)
    assert re.fullmatch(r"[0-9.e-]+ (us|ms|s|min|h)", shown)
    assert seconds(f"{float(shown.split()[0]):.12f}{shown.split()[1]}") == pytest.approx(value, rel=0.006, abs=1e-12)


@given(st.integers(0, 1 << 60))
def test_what_is_shown_of_a_size_is_that_size(value: int) -> None:
    shown = show_bytes(value)
    assert re.fullmatch(r"[0-9.]+ (B|KiB|MiB|GiB|TiB)", shown)
    assert size_bytes(shown) == pytest.approx(value, rel=0.006)


def test_shown_as_people_read_it() -> None:
    assert [show_seconds(v) for v in (64e-6, 0.0029, 4.1, 119, 750, 11520)] == [
        "64 us",
        "2.9 ms",
        "4.1 s",
        "119 s",
        "12.5 min",
        "3.2 h",
    ]
    assert [show_bytes(v) for v in (0, 1023, 1024, 3 << 29, 1023 << 30)] == [
        "0 B",
        "1023 B",
        "1 KiB",
        "1.5 GiB",
        "1023 GiB",
    ]
