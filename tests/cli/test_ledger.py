"""The cold-start ledger: by hand on a made-up log, and against a clock on a real run."""

from __future__ import annotations

import json
from math import inf
from pathlib import Path
from typing import Any

import pytest

from cli.command_line import Nubes
from nubes.functions import events as e
from nubes.functions.spec import Code, FunctionSpec
from nubes.replay.advice import advice
from nubes.replay.ledger import PARTS, Ledger, ledger, totals

MIB = 1 << 20
SPEC = FunctionSpec(name="a/f", memory_bytes=1024 * MIB, keep_alive="fixed-window(keep=60s)", code=Code(digest="1"))
CLASS = FunctionSpec(
    name="a/C", kind="class", methods=("m",), keep_alive="fixed-window(keep=60s)", code=Code(digest="1")
)
PHASES = (0.1, 0.05, 0.25, 0.08)  # fork, environment, import, setup


def begun(cold_start: str, *specs: FunctionSpec) -> list[tuple[float, Any]]:
    return [
        (0.0, e.MachineReady(4.0, 8 << 30)),
        (0.0, e.PolicySet("cold-start", cold_start)),
        (1.0, e.Deployed("a", 1, specs)),
    ]


def split(made: Ledger) -> list[dict[str, float]]:
    return [
        {part: round(seconds, 6) for part, seconds in start.parts().items()} for start in made.starts if start.complete
    ]


def test_a_fresh_start_part_by_part() -> None:
    log = [
        *begun("fresh", SPEC),
        (10.0, e.Submitted(1, "a/f")),
        (10.5, e.InstanceReady(1, PHASES)),
        (11.0, e.Finished(1, 1, True, 0.4)),
    ]
    made = ledger(log)
    assert split(made) == [
        {
            "queue": 0.0,
            "parent": 0.0,
            "fork": 0.1,
            "environment": 0.05,
            "import": 0.25,
            "setup": 0.08,
            "first answer": 0.52,
        }
    ]
    function = made.functions[0]
    assert (function.function, function.calls, function.cold, function.ahead) == ("a/f", 1, 1, 0)
    assert function.sources == {"interpreter": 1}
    assert function.wall_s == pytest.approx(1.0)
    assert function.utility == pytest.approx(1.0 / 0.5)  # it lived 1 s until its last answer, and took 0.5 s to start
    assert sum(totals(made.functions).values()) == pytest.approx(1.0)


def test_waiting_for_a_parent_counts_as_parent() -> None:
    log = [
        *begun("flat-zygote", SPEC),  # grows the parent with the deployment: node 1
        (1.5, e.Submitted(1, "a/f")),
        (3.0, e.NodeReady(1, 2.0, MIB)),
        (3.01, e.InstanceReady(1, (0.002, 0.001, 0.0, 0.0))),
        (3.02, e.Finished(1, 1, True, 0.001)),
    ]
    made = ledger(log)
    assert split(made)[0]["parent"] == 1.5
    assert split(made)[0]["fork"] == 0.002
    assert made.functions[0].sources == {"function": 1}
    assert any("waited for a parent" in a.what and a.saves_s == pytest.approx(1.5) for a in advice(made))


def test_what_happened_before_a_call_came_is_not_its_time() -> None:
    log = [
        *begun("fresh", SPEC),
        (10.0, e.Submitted(1, "a/f")),
        (10.2, e.Submitted(2, "a/f")),  # instance 2 is started for it
        (10.3, e.Finished(1, 1, True, 0.0)),  # of an instance that is not ready: nothing comes of it
        (10.5, e.InstanceReady(1, PHASES)),
        (10.6, e.Finished(1, 1, True, 0.1)),  # call 2 takes the same instance
        (10.7, e.InstanceReady(2, PHASES)),
        (10.8, e.Finished(2, 1, True, 0.1)),
    ]
    made = ledger(log)
    for start in made.starts:
        if start.complete:
            assert sum(start.parts().values()) == pytest.approx(start.wall_s)
    assert made.functions[0].cold == 1  # call 2 waited for a busy instance, not for a start
    assert made.functions[0].ahead == 1


def test_waiting_for_room_counts_as_queue() -> None:
    one = FunctionSpec(name="a/f", max_instances=1, single_use=True, code=Code(digest="1"))
    log = [
        *begun("fresh", one),
        (10.0, e.Submitted(1, "a/f")),
        (10.0, e.Submitted(2, "a/f")),
        (10.5, e.InstanceReady(1, PHASES)),
        (12.0, e.Finished(1, 1, True, 1.0)),
        (12.5, e.InstanceReady(2, PHASES)),
        (13.0, e.Finished(2, 2, True, 0.4)),
    ]
    made = ledger(log)
    assert [one["queue"] for one in split(made)] == [0.0, 2.0]
    assert any("more room" in a.what and a.saves_s == pytest.approx(2.0) for a in advice(made))


def test_advice_is_ranked_by_what_it_saves() -> None:
    log = begun("fresh", SPEC, CLASS)
    for n, at in enumerate((10.0, 210.0, 410.0), 1):  # each after the last one's keep-alive of 60 s
        log += [
            (at, e.Submitted(n, "a/f")),
            (at + 0.5, e.InstanceReady(n, PHASES)),
            (at + 1.0, e.Finished(n, n, True, 0.4)),
            (at + 61.0, e.TimerFired(("instance", n))),
        ]
    log += [
        (500.0, e.Submitted(9, "a/C", method="m")),
        (502.0, e.InstanceReady(4, (0.1, 0.0, 0.1, 1.8))),
        (502.5, e.Finished(9, 4, True, 0.5)),
    ]
    made = ledger(log)
    found = advice(made)
    assert [a.saves_s for a in found] == sorted((a.saves_s for a in found), reverse=True)
    by = {(a.function, a.change.partition("(")[0]): a for a in found}
    always = by["a/f", "min_instances=1"]
    assert always.saves_s == pytest.approx(3 * 0.48)
    assert always.starts == 3
    assert always.dollars_per_day > 0
    longer = by["a/f", 'keep_alive="fixed-window']
    assert "300s" in longer.change  # the calls came 139 s after the last instance went
    assert longer.saves_s == pytest.approx(2 * 0.48)
    assert longer.starts == 2
    assert longer.dollars_per_day == pytest.approx(2 * 139 * 0.0000166667 * 86_400 / made.seconds)
    assert by["a/C", "@nubes.enter"].saves_s == pytest.approx(1.8)
    assert by["a/f", "nubes policy set cold-start seuss"].saves_s == pytest.approx(3 * 0.35)
    total = 3 * 0.48 + 2.0
    assert always.share == pytest.approx(3 * 0.48 / total)


def test_a_restart_ends_everything_and_nothing_is_counted_twice() -> None:
    log = [
        *begun("fresh", SPEC),
        (10.0, e.Submitted(1, "a/f", True)),
        (10.5, e.InstanceReady(1, PHASES)),
        (20.0, e.Restarted()),
        (20.5, e.InstanceReady(2, PHASES)),
        (21.0, e.Finished(1, 2, True, 0.1, b"", "", True)),
    ]
    made = ledger(log)
    first, second = made.starts
    assert (first.stopped_s, second.stopped_s) == (20.0, inf)
    assert not first.complete
    assert sum(second.parts().values()) == pytest.approx(second.wall_s)


APP = """
import time, sys, json
time.sleep(0.4)
import nubes
app = nubes.App("timed")

@app.cls()
class Slow:
    @nubes.enter()
    def setup(self):
        time.sleep(0.3)

    @nubes.method()
    def work(self):
        time.sleep(0.2)
        return 1

@app.local_entrypoint()
def main():
    begun = time.monotonic()
    Slow().work.remote()
    print(json.dumps(time.monotonic() - begun))
"""


def test_on_a_real_run_the_parts_add_up_to_what_the_caller_waited(nubes: Nubes, tmp_path: Path) -> None:
    (tmp_path / "timed.py").write_text(APP)
    ran = nubes("run", "timed.py", NUBES_COLD_START="fresh")
    waited_s = float(ran.stdout)
    report = json.loads(nubes("coldstart", "report", "--starts", "--json").stdout)
    (start,) = report["starts"]
    assert start["source"] == "interpreter"
    assert set(start["parts"]) == set(PARTS)
    total = sum(start["parts"].values())
    assert total == pytest.approx(start["wall_s"], rel=0.02)
    assert total == pytest.approx(waited_s, rel=0.02)
    assert start["parts"]["import"] >= 0.4
    assert start["parts"]["setup"] >= 0.3
    assert start["parts"]["first answer"] >= 0.2
    assert report["advice"][0]["function"] == "timed/Slow"
    shown = nubes("coldstart", "report").stdout
    assert "min_instances=1" in shown
    assert "first answer" in shown
