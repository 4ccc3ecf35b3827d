"""What the documentation shows is what there is."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from documents import ROOT, commands, python_blocks

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_tables_from_the_code_are_up_to_date(page: Path) -> None:
    text = page.read_text()
    assert _generator().generated(text) == text, "run `python docs/generate.py`"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = page.parent / path if path else page
        assert found.exists(), target
        if anchor and page.name != "papers.md":
            headings = re.findall(r"^#+ (.+)$", found.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w-]+", "-", h.lower()).strip("-") for h in headings], target


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_is_python(page: Path) -> None:
    for block in python_blocks(page.read_text()):
        ast.parse(block)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_exist(page: Path) -> None:
    import typer.main

    from nubes.cli.commands import app

    group = typer.main.get_command(app)
    for line in commands(page.read_text()):
        words = line.split()
        if words[0] == "make":
            target = words[1]
            makefile = (ROOT / "Makefile").read_text()
            assert f"\n{target}:" in makefile or (
                target.startswith("bench-") and f"{target[6:]}.py" in os.listdir(ROOT / "bench")
            )
        if words[0] == "nubes":
            command = group.commands[words[1]]  # type: ignore[attr-defined]
            inner = getattr(command, "commands", None)
            command = inner[words[2]] if inner else command
            known = {option for one in command.params for option in one.opts}
            if words[1] not in ("run", "invoke"):
                assert {w.partition("=")[0] for w in words if w.startswith("--")} <= known, line


def test_every_option_of_a_function_is_documented() -> None:
    from nubes.api.options import options

    page = (ROOT / "docs" / "functions.md").read_text()
    missing = [name for name in inspect.signature(options).parameters if f"`{name}`" not in page]
    assert missing == []


def test_the_example_of_the_readme_runs_as_it_stands_there(tmp_path: Path) -> None:
    example = python_blocks((ROOT / "README.md").read_text())[0]
    assert (ROOT / "examples" / "hello.py").read_text().endswith(example)
    (tmp_path / "hello.py").write_text(example)
    done = subprocess.run(
        [sys.executable, "-m", "nubes.cli.main", "run", "-q", "hello.py", "--text", "three short words"],
        cwd=tmp_path, env={**os.environ, "NUBES_DATA": str(tmp_path / "data")}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout.split("\n")) == (0, ["[5, 5, 5]", "5", ""]), done.stderr


def test_the_map_for_programs_names_every_page() -> None:
    text = (ROOT / "docs" / "llms.txt").read_text()
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md", "papers.md"}
    assert pages <= set(re.findall(r"\(([\w-]+\.md)\)", text))
    nav = (ROOT / "mkdocs.yml").read_text()
    assert all(f": {name}" in nav for name in pages)
