"""Seeded random days: whatever happens in whatever order, the invariants hold and every call is answered once."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from nubes.functions import deployments
from nubes.functions import events as e
from nubes.functions.controller import Functions
from nubes.functions.invariants import check
from nubes.functions.spec import FunctionSpec
from nubes.kernel.fingerprint import fingerprint
from nubes.kernel.log import Log

from .monkey import CODEC, MIB, Monkey, monkey_policies


@pytest.fixture(autouse=True)
def policies_of_the_monkey() -> Iterator[None]:
    with monkey_policies():
        yield


@pytest.mark.parametrize("block", range(8))
def test_any_policies(block: int) -> None:
    for seed in range(block * 25, block * 25 + 25):
        Monkey(seed).run(200)


@pytest.mark.parametrize("block", range(2))
def test_policies_that_decide_by_dice(block: int) -> None:
    names = {"keep-alive": ["monkey"], "queueing": ["monkey-limits", "fifo"], "cold-start": ["monkey"]}
    for seed in range(block * 20, block * 20 + 20):
        Monkey(10_000 + seed, names).run(300)


class Twice(Monkey):
    """Its functions may run twice, and often do."""

    def spec(self, name: str) -> FunctionSpec:
        made = super().spec(name)
        room = 1 if made.batching or made.single_use else self.r.choice([1, 5])
        return msgspec.structs.replace(
            made, idempotent=True, balancing=self.r.choice(["", "monkey", "tail-at-scale"]), hedging="monkey",
            min_instances=3, max_instances=0, concurrency=room, cpu=0.1, memory_bytes=MIB,
        )  # fmt: skip


def test_calls_that_run_twice() -> None:
    names = {"keep-alive": ["no-unload"], "queueing": ["fifo", "monkey-limits"], "cold-start": ["monkey"]}
    copies = sum(Twice(30_000 + seed, names).run(300).copies for seed in range(40))
    assert copies > 100


class Keyed(Monkey):
    """Its calls often have a key that others have, too."""

    with_key = 0.7


def test_calls_of_the_same_keys() -> None:
    shared = sum(Keyed(40_000 + seed).run(200).shared for seed in range(40))
    assert shared > 20


def test_parameterisations_that_are_soon_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten = []
    monkeypatch.setattr(deployments, "VARIANT_IDLE_S", 0.1)
    monkeypatch.setattr(deployments, "LOOK_S", 0.0)
    forget = deployments._forget
    monkeypatch.setattr(deployments, "_forget", lambda c, f: (forgotten.append(f.variant), forget(c, f)))
    for seed in range(40):
        Monkey(20_000 + seed).run(200)
    assert len([variant for variant in forgotten if variant]) > 100


@pytest.mark.slow
@pytest.mark.parametrize("block", range(100))
def test_thousands_of_days(block: int) -> None:
    for seed in range(block * 100, block * 100 + 100):
        Monkey(100_000 + seed).run(300)


def story(seed: int) -> str:
    monkey = Monkey(seed, twins=False).run(200)
    return f"{monkey.digest()} {fingerprint(monkey.c)}"


def test_the_log_of_a_day_is_folded_to_the_same_state(tmp_path: Path) -> None:
    """However the state was carried over: in memory, by a snapshot and the records behind it, or by all records."""
    for seed in range(20):
        monkey = Monkey(seed, twins=False).run(200)
        folder = tmp_path / str(seed)
        log = Log(folder, segment_bytes=4096)
        controller = monkey.start()
        for number, (now, event) in enumerate(monkey.events):
            log.append(CODEC.encode(now, event))
            controller.handle(event, now)
            if number == len(monkey.events) // 2:
                log.save_snapshot(pickle.dumps(controller, 5))
        log.close()
        log = Log(folder)
        assert log.snapshot is not None
        from_snapshot, from_start = pickle.loads(log.snapshot), monkey.start()
        for record in log.records():
            now, event = CODEC.decode(record)
            from_snapshot.handle(event, now)
        for record in log.records(0):
            now, event = CODEC.decode(record)
            from_start.handle(event, now)
        log.close()
        assert fingerprint(from_snapshot) == fingerprint(from_start) == fingerprint(controller) == fingerprint(monkey.c)


SCRIPT = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
test = importlib.import_module(sys.argv[2])
with test.monkey_policies():
    print("\\n".join(test.story(seed) for seed in range(int(sys.argv[3]))))
"""


def test_the_same_events_give_the_same_commands_and_state_in_another_process() -> None:
    here = [story(seed) for seed in range(12)]
    root = Path(__file__).parents[__name__.count(".")]
    for hash_seed in ("1", "4711"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed}
        arguments = [sys.executable, "-c", SCRIPT, str(root), __name__, "12"]
        there = subprocess.run(arguments, env=env, capture_output=True, text=True, check=True)
        assert there.stdout.split("\n")[:-1] == here


# -- the checker notices ----------------------------------------------------------------------------------------------


def busy_controller() -> Functions:
    c = Functions(keep_alive="no-unload", cold_start="seuss", cpu=8.0, memory_bytes=1 << 31)
    c.handle(e.Deployed("a", 1, (FunctionSpec(name="a/f", concurrency=2), FunctionSpec(name="a/g"))), 0.0)
    for call in range(1, 6):
        c.handle(e.Submitted(call, "a/f" if call < 5 else "a/g", key=f"k{call % 4}"), 1.0)
    for node in list(c.tree.where):
        c.handle(e.NodeReady(node, 1.0), 2.0)
    c.handle(e.InstanceReady(1), 3.0)
    assert check(c) == []
    assert c.functions["a/f"].busy
    assert c.functions["a/g"].queued
    return c


@pytest.mark.parametrize(
    "break_it",
    [
        "c.functions['a/f'].busy += 1",
        "c.functions['a/f'].queued += 1",
        "c.functions['a/g'].starting -= 1",
        "c.machines[0].cpu_used += 0.125",
        "c.machines[0].memory_used -= 1",
        "c.functions['a/f'].open[1] = c.instances[1]",
        "c.instances[1].calls.clear()",
        "c.instances[1].load = 3",
        "del c.instances[1]",
        "c.calls[1].instance = 77",
        "c.functions['a/g'].waiting.clear()",
        "c.functions['a/g'].instances.popitem()",
        "c.functions['a/g'].blocked = True",
        "del c.functions['a/f']",
        "c.keys['a/f', 'k2'] = 3",
        "c.aliases[99] = 1",
        "next(iter(c.tree.where.values())).children += 1",
        "c.tree.where.popitem()",
    ],
)
def test_the_checker_notices(break_it: str) -> None:
    c = busy_controller()
    exec(break_it, {"c": c})
    assert check(c) != []
