"""Trying a policy from a file: what is refused, exact ties, and the same bytes every time."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nubes.functions.policies import fixed_window, lru
from nubes.kernel.errors import NotFound, UsageError
from nubes.kernel.policy import find
from nubes.replay.refusal import PolicyRefused, check
from nubes.replay.trial import Candidate, try_policy
from nubes.replay.verdict import trial_html, trial_table

WORKLOADS = ("poisson(functions=4,length=4m)", "bursty(functions=3,length=2m)")

MINE = """
from nubes.functions.seams import KeepAlive, Window

class Mine(KeepAlive):
    '''Keeps an instance for twice the last gap between calls.'''

    def __init__(self):
        self.gap_s = {}

    def arrived(self, f, now):
        if f.arrivals:
            self.gap_s[f.name] = now - f.last_arrival_s

    def window(self, f, now):
        return Window(0.0, 2 * self.gap_s.get(f.name, 60.0))
"""

HEAD = "from nubes.functions.seams import KeepAlive, Window\n"
BODY = "class Bad(KeepAlive):\n    def window(self, f, now):\n        {}\n        return Window(0.0, 1.0)\n"

REFUSED = {
    "time.time": "import time\n" + BODY.format("time.time()"),
    "time.monotonic": "from time import monotonic as m\nlater = m\n" + BODY.format("later()"),
    "datetime.datetime.now": "import datetime as d\nx = d.datetime\n" + BODY.format("y = x; y.now()"),
    "random.random": "import random\n" + BODY.format("random.random()"),
    "random.Random": "import random\n" + BODY.format("random.Random()"),
    "numpy.random.rand": "import numpy as np\n" + BODY.format("np.random.rand()"),
    "numpy.random.default_rng": "from numpy.random import default_rng\n" + BODY.format("default_rng()"),
    "socket.create_connection": "import socket\n" + BODY.format("socket.create_connection(('x', 1))"),
    "urllib.request.urlopen": "import urllib.request\n" + BODY.format("urllib.request.urlopen('http://x')"),
    "open": BODY.format("open('/tmp/x')"),
    "os.urandom": "import os\n" + BODY.format("os.urandom(1)"),
    "pathlib.Path": "from pathlib import Path\n" + BODY.format("Path('x').read_text()"),
    "__import__": BODY.format("__import__('time').time()"),
    "eval": BODY.format("eval('1')"),
    "time": "import time\n" + BODY.format("getattr(time, 'ti' + 'me')()"),
    "everything of random": "from random import *\n" + BODY.format("pass"),
    "__builtins__": BODY.format("__builtins__"),
}


def _file(folder: Path, text: str, name: str = "mypolicy.py") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


@pytest.mark.parametrize("name", REFUSED)
def test_what_touches_the_world_is_refused_by_name_before_it_runs(tmp_path: Path, name: str) -> None:
    file = _file(tmp_path, "raise SystemExit('it ran')\n" + HEAD + REFUSED[name])
    with pytest.raises(PolicyRefused, match=rf"mypolicy.py:\d+ touches .*: {name}\.( |$)"):
        try_policy(file, "keep-alive", WORKLOADS, seeds=(0,), jobs=1)


def test_seeded_generators_and_plain_arithmetic_are_allowed(tmp_path: Path) -> None:
    text = (
        HEAD
        + "import math, random, numpy as np\nfrom nubes.kernel.rng import rng\n"
        + BODY.format(
            "random.Random(3).random(), np.random.default_rng(1), rng(0, f.name), math.log(2), np.mean([now])"
        )
    )
    assert Candidate(_file(tmp_path, text), "keep-alive").make().text == "mypolicy.py"
    check(Path(lru.__file__))


HIDDEN = {
    "time.time": "from nubes.kernel.clock import WallClock\n" + BODY.format("WallClock()()"),
    "random.shuffle": "import nubes.kernel.rng as r\n" + BODY.format("r.random.shuffle([1, 2])"),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_what_hides_behind_other_modules_is_refused_when_it_runs(tmp_path: Path, name: str) -> None:
    file = _file(tmp_path, HEAD + HIDDEN[name])
    with pytest.raises(PolicyRefused, match=f"while it decides: {name}"):
        try_policy(file, "keep-alive", WORKLOADS[:1], seeds=(0,), jobs=1)
    assert isinstance(time.time(), float)
    assert isinstance(random.random(), float)


def test_catching_the_refusal_does_not_hide_it(tmp_path: Path) -> None:
    hidden = (
        "from nubes.kernel.clock import WallClock\n"
        "class Bad(KeepAlive):\n"
        "    def window(self, f, now):\n"
        "        try:\n"
        "            return Window(0.0, WallClock()() % 60)\n"
        "        except Exception:\n"
        "            return Window(0.0, 1.0)\n"
    )
    with pytest.raises(PolicyRefused, match=r"time\.time"):
        try_policy(_file(tmp_path, HEAD + hidden), "keep-alive", WORKLOADS[:1], seeds=(0,), jobs=1)


def test_a_copy_of_a_shipped_policy_ties_with_it_exactly(tmp_path: Path) -> None:
    text = Path(fixed_window.__file__).read_text()
    shipped = find("keep-alive", "fixed-window")
    trial = try_policy(_file(tmp_path, text) + "::FixedWindow", "keep-alive", WORKLOADS, seeds=(0, 1), jobs=1)
    twin = next(o for o in trial.opponents if o.policy == "fixed-window")
    assert twin.tie
    assert {(r.low, r.middle, r.high) for r in twin.ratios.values()} == {(1.0, 1.0, 1.0)}
    assert twin.means == trial.means
    assert not next(o for o in trial.opponents if o.policy == "sand").tie
    assert find("keep-alive", "fixed-window") is shipped


def test_other_seams_can_be_tried_too(tmp_path: Path) -> None:
    text = (
        "from nubes.functions.seams import Queueing\n"
        "class Newest(Queueing):\n"
        "    ordered = True\n"
        "    def order(self, f, call):\n"
        "        return (-call.arrived_s,)\n"
    )
    trial = try_policy(_file(tmp_path, text), "queueing", WORKLOADS, seeds=(0,), jobs=1)
    assert {o.policy for o in trial.opponents} >= {"fifo", "edf", "sjf"}


RUN = """
import json, sys
from nubes.replay.trial import try_policy
from nubes.replay.verdict import trial_html
trial = try_policy(sys.argv[1], "keep-alive", ["poisson(functions=4,length=4m)"], seeds=(0, 1), jobs=int(sys.argv[2]))
print(json.dumps(trial.to_dict()) + trial_html(trial))
"""


def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    file = _file(tmp_path, MINE)
    outputs = {
        subprocess.run(
            [sys.executable, "-c", RUN, file, jobs],
            env={**os.environ, "PYTHONHASHSEED": jobs},
            capture_output=True,
            check=True,
        ).stdout
        for jobs in ("1", "2")
    }
    assert len(outputs) == 1


def test_the_result_is_shown(tmp_path: Path) -> None:
    from rich.console import Console

    trial = try_policy(_file(tmp_path, MINE), "keep-alive", WORKLOADS, seeds=(0, 1), jobs=1)
    console = Console(width=120, record=True, file=open("/dev/null", "w"))
    console.print(trial_table(trial))
    text = console.export_text()
    for opponent in trial.opponents:
        assert opponent.policy in text
        for ratio in opponent.ratios.values():
            assert ratio.low <= ratio.middle * (1 + 1e-12)
            assert ratio.middle <= ratio.high * (1 + 1e-12)
    assert trial_html(trial).count("<svg") == 4
    json.dumps(trial.to_dict(), allow_nan=False)


def test_what_is_wrong_with_a_file_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not Python"):
        Candidate(_file(tmp_path, "def ("), "keep-alive").make()
    with pytest.raises(UsageError, match="holds 0 policies"):
        Candidate(_file(tmp_path, "x = 1"), "keep-alive").make()
    with pytest.raises(UsageError, match="holds 2 policies"):
        Candidate(_file(tmp_path, MINE + MINE.replace("Mine", "Other")), "keep-alive").make()
    with pytest.raises(UsageError, match="Give every argument a default"):
        Candidate(_file(tmp_path, MINE.replace("__init__(self)", "__init__(self, x)")), "keep-alive").make()
    with pytest.raises(UsageError, match="cannot be read"):
        Candidate(str(tmp_path / "none.py"), "keep-alive").make()
    with pytest.raises(NotFound, match="no seam"):
        try_policy(_file(tmp_path, MINE), "eviction", WORKLOADS)
    with pytest.raises(UsageError, match="cannot be tried over traces"):
        try_policy(_file(tmp_path, MINE), "balancing", WORKLOADS)
