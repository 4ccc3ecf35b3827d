"""`nubes run`: what it runs, what it passes on, and how it ends. No server is up: each starts one of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from cli.command_line import COMMAND, Nubes

APPS = Path(__file__).parent / "apps"
SHOP = str(APPS / "shop.py")


@pytest.mark.parametrize(
    ("words", "code", "out", "err"),
    [
        ([SHOP], 0, ["main 0 False PosixPath a"], ""),
        ([SHOP, "7"], 7, ["main 7 False PosixPath a"], ""),
        (
            [SHOP, "--code", "3", "--mode", "b", "--remote"],
            3,
            ["main 3 True PosixPath b", "[add] adding", "got 3"],
            "[add] to the other",
        ),
        ([SHOP + "::add", "--a", "2", "-q"], 0, ["3"], ""),
        ([SHOP + "::count", "2"], 0, ["0", "1"], ""),
        ([SHOP + "::Box.hold", "3", "--size", "5", "--json"], 0, ["15"], ""),
        ([SHOP + "::fail", "gone"], 1, [], "KeyError: 'gone'"),
        ([SHOP + "::leave", "3"], 3, [], "nubes: The function called sys.exit(3): it has no result."),
        ([SHOP + "::leave", "0"], 0, [], "nubes: The function called sys.exit(0): it has no result."),
        ([SHOP + "::Box.parts", "2", "--size", "2"], 0, ["0", "1", "2", "3"], ""),
        ([SHOP + "::die"], 137, [], "SIGKILL"),
        ([SHOP + "::late"], 124, [], "timeout of 0.3 s"),
    ],
)
def test_results_output_and_exit_codes(nubes: Nubes, words: list[str], code: int, out: list[str], err: str) -> None:
    ran = nubes("run", *words)
    assert ran.returncode == code, ran.stderr
    assert ran.stdout.splitlines() == out
    assert err in ran.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run"], "There is nothing to run."),
        (["run", "elsewhere.py"], "There is no file elsewhere.py. Give the path of a Python file."),
        (["run", "shop2.py"], "There is no file shop2.py. Did you mean shop.py?"),
        (["run", "shop.py::ad"], "shop.py has no function 'ad'. Did you mean add?"),
        (["run", "shop.py::zzz"], "There are: main, add, count, fail, die, leave, late, sleep, Box.hold, Box.parts."),
        (["run", "shop.py::add"], "add needs --a. Usage: add --a A [--b B]."),
        (["run", "shop.py::add", "x"], "a of add is 'x': expected int, got str."),
        (["run", "shop.py::add", "1", "--c", "2"], "add has no parameter '--c'."),
        (["run", "shop.py::add", "1", "2", "3"], "add has no place for '3'."),
        (["run", "shop.py::main", "--mod", "b"], "Did you mean --mode?"),
        (["run", "-m", "no_such_module"], "There is no module 'no_such_module'."),
        (["run", "syntax.py"], "syntax.py, line 2 is not valid Python ('(' was never closed): `x = (`."),
        (["run", "missing.py"], "missing.py imports 'no_such_package', which is not installed. Install it here"),
        (["deploy", "empty.py"], "empty.py defines no app. Write `app = nubes.App"),
        (["deploy", "two.py"], "two.py defines several apps: one, two. Say which: two.py::one."),
        (["deploy", "wrong.py"], "No keep-alive policy is named 'cider'. Did you mean cidre"),
    ],
)
def test_wrong_usage_is_one_plain_sentence_and_code_2(
    nubes: Nubes, tmp_path: Path, words: list[str], said: str
) -> None:
    files = {
        "shop.py": Path(SHOP).read_text(),
        "syntax.py": "\nx = (\n",
        "missing.py": "import no_such_package\n",
        "empty.py": "x = 1\n",
        "two.py": "import nubes\na = nubes.App('one')\nb = nubes.App('two')\n",
        "wrong.py": "import nubes\napp = nubes.App('w')\n@app.function(keep_alive='cider')\ndef f(): pass\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    ran = nubes(*words)
    assert ran.returncode == 2, ran.stderr
    assert ran.stdout == ""
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["up", "--keep-alive", "cider"], "No keep-alive policy is named 'cider'."),
        (["up", "--port", "99999"], "port is 99999 (--port)"),
        (["up", "--memory", "12"], "'12' is not a size."),
        (["logs", "--since", "soon"], "'soon' is not a duration."),
        (["call", "get", "fc-!"], "'fc-!' is not a call id."),
        (["policy", "set", "keepalive", "cidre"], "There is no seam 'keepalive'."),
        (["replay", "no-such-trace"], "There is no workload 'no-such-trace'"),
        (["nonsense"], "No such command 'nonsense'. There are: up, down, join, run, "),
        (["dpeloy"], "No such command 'dpeloy'. Did you mean `nubes deploy`?"),
        (["history", "shop"], "Did you mean `nubes app history`?"),
        (["app", "histry"], "Did you mean `nubes app history`?"),
        (["app", "rollback", "shop", "3"], "To go back, `git checkout` the files and `nubes deploy` them"),
        (["ps", "--nonsense"], "No such option: --nonsense"),
        (["why", "fc-1"], "holds no log."),
        (["coldstart", "report"], "holds no log."),
    ],
)
def test_wrong_words_need_no_server_to_be_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    from nubes.cli import errors
    from nubes.cli.main import _command

    monkeypatch.chdir(tmp_path)
    for variable in ("NUBES_KEEP_ALIVE", "NUBES_PORT", "NUBES_MEMORY"):
        monkeypatch.setenv(variable, "")  # what flags set is undone with it
    monkeypatch.setenv("NUBES_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert errors.exit_code_of(lambda: _command(words)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("words", [["ps"], ["deploy", SHOP], ["run", "-d", SHOP + "::add", "1"]])
def test_without_a_server_it_says_so_and_to_try_again(nubes: Nubes, words: list[str]) -> None:
    ran = nubes(*words)
    assert ran.returncode == 75
    assert "Start one with `nubes up`." in ran.stderr


def test_an_error_in_the_users_file_shows_the_users_frames_only(nubes: Nubes, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def f():\n    return 1 / 0\n\nf()\n")
    ran = nubes("run", "broken.py")
    assert ran.returncode == 1
    assert "ZeroDivisionError" in ran.stderr
    assert "broken.py" in ran.stderr
    assert "nubes/cli" not in ran.stderr


def test_the_result_in_a_file(nubes: Nubes, tmp_path: Path) -> None:
    assert nubes("run", SHOP + "::count", "3", "-w", "out.json").stdout == ""
    assert json.loads((tmp_path / "out.json").read_text()) == [0, 1, 2]
    assert nubes("run", SHOP + "::sleep", "0", "-w", "out.txt").returncode == 0
    assert (tmp_path / "out.txt").read_text() == "slept"


def test_a_modules_function_and_its_help(nubes: Nubes, tmp_path: Path) -> None:
    package = tmp_path / "pack"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "mod.py").write_text(
        "import nubes\napp = nubes.App('m')\n@app.function()\ndef twice(x: float):\n    'Doubles.'\n    return 2 * x\n"
    )
    assert nubes("run", "-m", "pack.mod::twice", "1.5").stdout == "3.0\n"
    shown = nubes("run", "-m", "pack.mod::twice", "--help").stdout
    assert shown == "Usage: twice --x X.\n\nDoubles.\n"
    assert "[FILE[::NAME]]" in nubes("run", "--help").stdout


def test_ctrl_c_cancels_and_ends_with_130(tmp_path: Path) -> None:
    env = {**os.environ, "NUBES_DATA": str(tmp_path / "data")}
    running = subprocess.Popen([*COMMAND, "run", SHOP + "::sleep", "60"], env=env, stderr=subprocess.PIPE, text=True)
    lines = tmp_path / "data" / "log"
    until = time.monotonic() + 30
    while time.monotonic() < until and not any(b"shop/sleep" in p.read_bytes() for p in lines.glob("*.log")):
        time.sleep(0.05)
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    assert running.wait(20) == 130
    assert running.stderr is not None
    assert running.stderr.read() == ""


def imported_by(*words: str, data: Path) -> set[str]:
    """Every module that is loaded when the command ends."""
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print('\\n@', *sys.modules))\n"
        f"sys.argv = ['nubes', *{list(words)!r}]\n"
        "from nubes.cli.main import main\nmain()"
    )
    env = {**os.environ, "NUBES_DATA": str(data)}
    done = subprocess.run([COMMAND[0], "-c", code], capture_output=True, text=True, env=env, timeout=60)
    return set(done.stdout.rpartition("@")[2].split())


def test_nothing_heavy_is_imported_that_is_not_used(tmp_path: Path) -> None:
    version = imported_by("--version", data=tmp_path)
    assert "nubes.cli.main" in version
    assert not version & {"typer", "rich", "msgspec", "asyncio", "nubes.app", "numpy"}
    run = imported_by("run", SHOP + "::add", "1", data=tmp_path)
    assert "nubes.app" in run
    assert not run & {
        "numpy",
        "starlette",
        "uvicorn",
        "prometheus_client",
        "rich",
        "nubes.replay",
        "nubes.functions.controller",
    }
