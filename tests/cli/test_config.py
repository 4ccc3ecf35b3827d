"""Settings: who wins, and what is wrong with wrong ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.command_line import Nubes
from nubes import config
from nubes.kernel.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for setting in config.SETTINGS:
        monkeypatch.delenv(setting.variable, raising=False)
    monkeypatch.delenv("NUBES_PROFILE", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "nubes").mkdir(parents=True)
    return tmp_path


def test_the_last_one_wins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def port() -> tuple[int, str]:
        value, source = config.resolve({"port": flag}, folder)["port"]
        return value, source.replace(str(folder), "")

    flag = None
    assert port() == (8642, "default")
    (folder / "pyproject.toml").write_text('[tool.nubes]\nport = 1\nkeep_alive = "cidre"\n')
    assert port() == (1, "[tool.nubes] in /pyproject.toml")
    own = folder / "home" / "nubes" / "config.toml"
    own.write_text("port = 2\n[profiles.work]\nport = 3\n")
    assert port() == (2, "/home/nubes/config.toml")
    monkeypatch.setenv("NUBES_PROFILE", "work")
    assert port() == (3, "[profiles.work] in /home/nubes/config.toml")
    monkeypatch.setenv("NUBES_PORT", "4")
    assert port() == (4, "NUBES_PORT")
    flag = 5
    assert port() == (5, "--port")
    assert config.resolve({}, folder)["keep-alive"].value == "cidre"


def test_a_file_can_choose_its_profile(folder: Path) -> None:
    own = folder / "home" / "nubes" / "config.toml"
    own.write_text('profile = "work"\nhost = "a"\n[profiles.work]\nhost = "b"\n')
    assert config.resolve({}, folder)["host"].value == "b"


@pytest.mark.parametrize(
    ("project", "said"),
    [
        ("[tool.nubes]\nprot = 1\n", "There is no setting 'prot' .* Did you mean 'port'"),
        ("[tool.nubes]\nport = 'x'\n", "port is 'x' .* not a whole number"),
        ("[tool.nubes]\nport = true\n", "not a whole number"),
        ("[tool.nubes]\ncpu = -1\n", "negative"),
        ("[tool.nubes]\nmemory = '12'\n", "'12' is not a size"),
        ("[tool.nubes]\ndatabase = 'mysql://x'\n", "does not begin with postgresql://"),
        ("[tool.nubes]\nobjects = 'bucket'\n", "'bucket' .* is no URL"),
        ("[tool.nubes\n", "cannot be read"),
    ],
)
def test_wrong_settings_name_their_place(folder: Path, project: str, said: str) -> None:
    (folder / "pyproject.toml").write_text(project)
    with pytest.raises(UsageError, match=said):
        config.resolve({}, folder)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:hush@host:5432/db", "postgresql://me:***@host:5432/db"),
        (
            "postgresql://me@host/db?password=hush&sslmode=require",
            "postgresql://me@host/db?password=***&sslmode=require",
        ),
        ("postgresql://me:hu:sh@host/db", "postgresql://me:***@host/db"),
        ("postgresql://host:5432/db", "postgresql://host:5432/db"),
    ],
)
def test_a_databases_password_is_not_shown(nubes: Nubes, url: str, shown: str) -> None:
    assert json.loads(nubes("config", "show", "--json", NUBES_DATABASE=url).stdout)["database"]["value"] == shown
    assert "hush" not in nubes("config", "show", NUBES_DATABASE=url).stdout


def test_a_profile_that_is_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUBES_PROFILE", "play")
    with pytest.raises(UsageError, match="there is no file"):
        config.resolve({}, folder)
    (folder / "home" / "nubes" / "config.toml").write_text("[profiles.work]\n")
    with pytest.raises(UsageError, match=r"no profile 'play' .* The profiles are: work"):
        config.resolve({}, folder)


def test_show_names_every_source(nubes: Nubes, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.nubes]\nqueueing = "sjf"\n')
    shown = json.loads(nubes("config", "show", "--json", NUBES_PORT="7000").stdout)
    assert shown["queueing"] == {"value": "sjf", "source": f"[tool.nubes] in {tmp_path}/pyproject.toml"}
    assert shown["port"] == {"value": 7000, "source": "NUBES_PORT"}
    assert shown["data"]["source"] == "NUBES_DATA"
    assert shown["host"]["source"] == "default"
    assert "7000" in nubes("config", "show", NUBES_PORT="7000").stdout


def test_settings_reach_the_server(nubes: Nubes, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.nubes]\nqueueing = "sjf"\nport = 0\ncpu = 1.5\nmemory = "1GiB"\n')
    up = nubes("up", "-d", "--json", "--keep-alive", "lru")
    try:
        said = json.loads(up.stdout)
        assert (said["cpu"], said["memory_bytes"]) == (1.5, 2**30)
        assert said["policies"] == {
            "keep-alive": "lru", "queueing": "sjf", "cold-start": "seuss", "placement": "balanced",
            "balancing": "latest", "hedging": "none", "disruption": "at-once",
        }  # fmt: skip
    finally:
        nubes("down")
