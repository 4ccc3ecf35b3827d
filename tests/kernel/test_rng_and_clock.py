"""Randomness that can be repeated, and time that does not go back."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nubes.kernel.clock import VirtualClock, WallClock
from nubes.kernel.rng import rng

names = st.lists(st.text(max_size=4) | st.integers(0, 50), max_size=3).map(tuple)


@given(st.integers(0, 100), names)
def test_the_same_seed_and_names_give_the_same_numbers(seed: int, name: tuple[str | int, ...]) -> None:
    assert [rng(seed, *name).random() for _ in range(2)] == [rng(seed, *name).random()] * 2


@given(st.integers(0, 100), names, st.integers(0, 100), names)
def test_other_seeds_or_names_give_others(a: int, x: tuple[str | int, ...], b: int, y: tuple[str | int, ...]) -> None:
    same = (a, *map(str, x)) == (b, *map(str, y))
    assert (rng(a, *x).random() == rng(b, *y).random()) == same


def test_names_are_not_run_together() -> None:
    drawn = {
        rng(1, *name).random() for name in [("a", "b"), ("a/b",), ("a/", "b"), ("a", "/b"), ("ab",), ("a", "b", "")]
    }
    assert len(drawn) == 6


def test_the_same_in_another_process() -> None:
    script = "from nubes.kernel.rng import rng; print(rng(7, 'arrivals', 3).random())"
    other = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "99"}
    )
    assert float(other.stdout) == rng(7, "arrivals", 3).random()


def test_the_wall_clock_is_epoch_seconds() -> None:
    clock = WallClock()
    assert clock() == pytest.approx(time.time(), abs=0.5)
    assert clock() <= clock()


def test_the_wall_clock_does_not_go_back_when_somebody_sets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = WallClock()
    before = clock()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert clock() >= before
    restarted = WallClock(floor=before)
    assert restarted() >= before


def test_virtual_time_moves_by_hand() -> None:
    clock = VirtualClock(5.0)
    assert clock() == 5.0
    clock.now = 7.5
    assert clock() == 7.5
