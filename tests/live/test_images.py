"""Images: environments that are built once, hold their own packages and no others, and say why they cannot be built.

The packages are wheels made here, so that no index is asked.
"""

from __future__ import annotations

import concurrent.futures
import importlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from images_app import what_is_there
from real import script, started, until

import nubes
from nubes import client

PLANE = {"PYTHONPATH": ""}
pytestmark = pytest.mark.usefixtures("plane")


def wheel(folder: Path, name: str, version: str, code: str, needs: str = "") -> Path:
    """A wheel with one module."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    about = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + (
        f"Requires-Dist: {needs}\n" if needs else ""
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", code)
        archive.writestr(f"{about}/METADATA", metadata)
        archive.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{about}/RECORD", "")
    return path


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wheels")


def test_an_environment_holds_its_own_packages_and_no_others(
    plane: Path, packages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = wheel(packages, "greeting", "1.0", "TEXT = 'good day'\n")
    image = nubes.Image.debian_slim().pip_install(str(made)).env({"COLOUR": "red"})
    app = nubes.App("image", image=image)
    look = app.function(name="look")(what_is_there)
    plain = app.function(name="plain", image=nubes.Image.debian_slim())(what_is_there)
    with app.run():
        built = capsys.readouterr()
        assert "[image]" in built.err
        assert "greeting==1.0" in built.err
        assert built.out == ""
        seen = look.remote()
        assert seen["greeting"] == "good day"
        assert seen["colour"] == "red"
        assert seen["prefix"] == str(plane / "environments" / image.id)
        assert seen["host"] == []
        assert len(seen["nubes"]) == 4
        assert seen["is_local"] is False
        assert plain.remote()["greeting"] == ""
        assert "pytest" in plain.remote()["host"]
        assert "greeting==1.0" in (plane / "environments" / f"{image.id}.log").read_text()
    with app.run():
        assert "[image]" not in capsys.readouterr().err  # it is there already
        assert look.remote()["greeting"] == "good day"


def test_its_own_packages_win_over_those_nubes_brings(packages: Path) -> None:
    made = wheel(packages, "platformdirs", "9.9", "MARK = 'the image wins'\ndef user_data_dir(*_): return '/tmp'\n")
    app = nubes.App("wins", image=nubes.Image.debian_slim().uv_pip_install(str(made)))
    look = app.function(name="look")(what_is_there)
    with app.run():
        assert look.remote()["platformdirs"] == "the image wins"


def test_packages_that_nubes_cannot_run_beside_are_refused(packages: Path) -> None:
    made = wheel(packages, "msgspec", "9.9", "raise ImportError('not that msgspec')\n")
    app = nubes.App("clash", image=nubes.Image.debian_slim().pip_install(str(made)))
    app.function(name="look")(what_is_there)
    with (
        pytest.raises(nubes.NubesError, match=r"starting nubes beside these packages failed: .*not that msgspec"),
        app.run(),
    ):
        pass


def test_commands_files_and_local_modules(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "helper_module.py").write_text("VALUE = 41\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    made = wheel(packages, "greeting", "1.1", "TEXT = 'from a list'\n")
    (tmp_path / "requirements.txt").write_text(f"# what it needs\n{made}\n")
    image = (
        nubes.Image.debian_slim(f"{sys.version_info.major}.{sys.version_info.minor}")
        .pip_install_from_requirements(tmp_path / "requirements.txt")
        .env({"WORD": "seen by commands"})
        .run_commands(f"python -c 'import greeting, os; print(greeting.TEXT, os.environ[\"WORD\"])' > {tmp_path}/said")
        .add_local_python_source("helper_module")
    )
    app = nubes.App("steps", image=image)

    def use() -> int:
        import helper_module  # type: ignore[import-not-found]

        return int(helper_module.VALUE)

    function = app.function(name="use")(use)
    with app.run():
        assert (tmp_path / "said").read_text() == "from a list seen by commands\n"
        assert function.remote() == 41
    (tmp_path / "helper_module.py").write_text("VALUE = 42\n")
    assert nubes.Image.debian_slim().add_local_python_source("helper_module").id != image.id


def test_a_build_that_fails_is_one_sentence_and_leaves_nothing(plane: Path, packages: Path) -> None:
    made = wheel(packages, "unmet", "1.0", "", needs="no-such-package-anywhere")
    image = nubes.Image.debian_slim().pip_install(str(made), extra_options="--no-index")
    app = nubes.App("unmet", image=image)
    app.function(name="f")(what_is_there)
    for _ in range(2):
        with pytest.raises(nubes.NubesError) as caught, app.run():
            pass
        assert "\n" not in str(caught.value)
        assert "unmet-1.0" in str(caught.value)
        assert "no-such-package-anywhere" in str(caught.value)
        assert f"{image.id}.log" in str(caught.value)
    broken = nubes.App("broken", image=nubes.Image.debian_slim().run_commands("echo oh dear; exit 3"))
    broken.function(name="f")(what_is_there)
    with pytest.raises(nubes.NubesError, match=r"the command 'echo oh dear; exit 3' failed: oh dear"), broken.run():
        pass
    left = {path.name for path in (plane / "environments").iterdir() if path.is_dir()}
    assert image.id not in left
    assert not [name for name in left if name.startswith(".building")]


def test_those_who_want_the_same_environment_share_its_building(plane: Path, tmp_path: Path) -> None:
    image = nubes.Image.debian_slim().run_commands(f"echo built >> {tmp_path}/times; sleep 0.5")

    def build(_: int) -> None:
        client.connect().ask("build", environment=image.id, definition=image.definition())

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        list(pool.map(build, range(3)))
    assert (tmp_path / "times").read_text() == "built\n"


def test_a_build_that_nobody_waits_for_any_more_is_given_up(plane: Path, tmp_path: Path) -> None:
    text = (
        "import nubes\nfrom nubes import client\n"
        f"image = nubes.Image.debian_slim().run_commands('touch {tmp_path}/begun; sleep 30; touch {tmp_path}/done')\n"
        "client.connect().ask('build', environment=image.id, definition=image.definition())\n"
    )
    process = script(text)
    until((tmp_path / "begun").exists)
    process.kill()
    process.communicate()
    until(lambda: not [p for p in (plane / "environments").iterdir() if p.name.startswith(".building")])
    assert not (tmp_path / "done").exists()


def test_an_environment_that_vanished_is_the_callers_error(tmp_path: Path) -> None:
    import shutil

    image = nubes.Image.debian_slim().run_commands("true")
    app = nubes.App("vanished", image=image)
    look = app.function(name="look")(what_is_there)
    with started(tmp_path, PLANE), app.run():
        shutil.rmtree(tmp_path / "environments" / image.id)
        with pytest.raises(nubes.NubesError, match="has not been built"):
            look.remote()


def test_equal_images_are_one(packages: Path) -> None:
    base = nubes.Image.debian_slim()
    assert base.id == base.env({"A": "1"}).id == ""
    assert base.pip_install("six==1.17").id == base.pip_install(["six==1.17"]).env({"A": "1"}).id
    assert base.pip_install("six").id != base.pip_install("six==1.17").id
    assert base.pip_install("a", "b").id != base.pip_install("a").pip_install("b").id
    assert base.pip_install().id == ""
    code = "import nubes; print(nubes.Image.debian_slim().pip_install('six', pre=True).id)"
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert other.stdout.strip() == base.pip_install("six", pre=True).id
    first = wheel(packages, "changing", "1.0", "A = 1\n")
    before = base.pip_install(str(first)).id
    assert base.pip_install(str(wheel(packages, "changing", "1.0", "A = 2\n"))).id != before


@pytest.mark.parametrize(
    "name", ["apt_install", "from_registry", "from_dockerfile", "workdir", "add_local_dir", "uv_sync"]
)
def test_what_needs_containers_says_what_to_do_instead(name: str) -> None:
    with pytest.raises(nubes.UsageError, match=rf"Image.{name} needs containers, .*\. [A-Z]"):
        getattr(nubes.Image.debian_slim(), name)("x")


def test_images_that_cannot_be() -> None:
    base = nubes.Image.debian_slim()
    with pytest.raises(nubes.UsageError, match=r"python_version='2.7' is not"):
        nubes.Image.debian_slim("2.7")
    with pytest.raises(nubes.UsageError, match=r"There is no \./nothing\.whl"):
        base.pip_install("./nothing.whl")
    with pytest.raises(nubes.UsageError, match="no requirements file"):
        base.pip_install_from_requirements("nothing.txt")
    with pytest.raises(nubes.UsageError, match="no module that can be found"):
        base.add_local_python_source("no_such_module_anywhere")
    with base.pip_install("x").imports():  # there, it will be
        importlib.import_module("no_such_module_anywhere")
    with pytest.raises(ImportError), base.imports():
        importlib.import_module("no_such_module_anywhere")
