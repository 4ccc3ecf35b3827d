"""What is declared is what is needed, and what is installed is all there is."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from documents import ROOT

import nubes

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OTHER_NAMES = {"prometheus-client": "prometheus_client"}  # distribution -> module, where they differ
ONLY_LOADED = {"websockets"}  # what a dependency of ours asks for by itself, when told to


def _declared(requirements: list[str]) -> set[str]:
    names = {re.split(r"[<>=;\[ ]", text)[0] for text in requirements}
    return {OTHER_NAMES.get(name, name) for name in names}


def test_every_import_is_declared_and_every_dependency_is_imported() -> None:
    imported = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            imported |= {name.partition(".")[0] for name in names}
    outside = imported - sys.stdlib_module_names - {"nubes"}
    optional = set().union(*map(_declared, PROJECT["optional-dependencies"].values()))
    needed = _declared(PROJECT["dependencies"])
    assert outside <= needed | optional
    assert needed - ONLY_LOADED <= outside


def test_the_version_is_the_same_everywhere() -> None:
    assert PROJECT["version"] == nubes.__version__
    assert f"{nubes.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_name_is_exported_and_can_be_had() -> None:
    assert set(nubes.__all__) == {*nubes._NAMES, "__version__"}
    assert all(getattr(nubes, name) is not None for name in nubes.__all__)


@pytest.mark.slow
def test_a_fresh_install_works(tmp_path: Path) -> None:
    """A wheel, a new environment, and the commands one tries first."""

    def run(*words: str, **env: str) -> str:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("NUBES_", "PYTHON"))}
        done = subprocess.run(words, cwd=tmp_path, env={**kept, **env}, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
        return done.stdout

    run(sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT))
    (wheel,) = tmp_path.glob("nubes-*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("nubes/")}
    source = ROOT / "src"
    files = (path for path in (source / "nubes").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert packed == {str(path.relative_to(source)) for path in files}

    run(sys.executable, "-m", "venv", "fresh")
    python, command = str(tmp_path / "fresh/bin/python"), str(tmp_path / "fresh/bin/nubes")
    run(python, "-m", "pip", "install", "-qq", str(wheel))
    (tmp_path / "hello.py").write_text((ROOT / "examples/hello.py").read_text())
    data = str(tmp_path / "data")
    assert run(command, "--version") == f"nubes {nubes.__version__}\n"
    assert "hybrid-histogram" in run(command, "policy", "list", NUBES_DATA=data)
    assert run(command, "run", "hello.py::length", "cloud", "--json", "-q", NUBES_DATA=data) == "5\n"
    assert "hybrid-histogram" in run(command, "papers", NUBES_DATA=data)
    assert "cidre" in run(command, "replay", NUBES_DATA=data)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["dst"], "faults --seeds 1000"),
        (["dst", "SEEDS=10000"], "faults --seeds 10000"),
        (["dst", "SEED=7"], "faults --seed 7"),
        (["mutations"], "faults --mutations --seeds 10000"),
        (["chaos", "MINUTES=60"], "chaos --minutes 60 --seed 0 --machines 2"),
    ],
)
def test_the_makefile_runs_what_it_says(words: list[str], expected: str) -> None:
    told = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert any(line.endswith(expected) for line in told.splitlines()), told
