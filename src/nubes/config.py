"""Settings, and where each comes from.

Last wins: defaults, `[tool.nubes]` in pyproject.toml, the user's file and its profile, NUBES_*, flags.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import platformdirs

from nubes.kernel.errors import UsageError
from nubes.kernel.units import size_bytes


class Setting(NamedTuple):
    """One setting. Its name on the command line is `--name`, in files `name`, in the environment NUBES_NAME."""

    name: str
    kind: type
    default: Any
    about: str

    @property
    def variable(self) -> str:
        return variable(self.name)


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return "NUBES_" + name.upper().replace("-", "_")


class Value(NamedTuple):
    value: Any
    source: str


SETTINGS = (
    Setting("data", str, platformdirs.user_data_dir("nubes"), "the data folder: log, results, token"),
    Setting("host", str, "127.0.0.1", "the address the gateway listens on"),
    Setting("port", int, 8642, "the gateway's port; 0: any free one"),
    Setting("keep-alive", str, "", "the keep-alive policy"),
    Setting("queueing", str, "", "the queueing policy"),
    Setting("cold-start", str, "", "the cold-start policy"),
    Setting("placement", str, "", "the placement policy"),
    Setting("balancing", str, "", "which instance takes a call: the balancing policy"),
    Setting("hedging", str, "", "copies of late calls of idempotent functions: the hedging policy"),
    Setting("disruption", str, "", "which instances may go at once: the disruption policy"),
    Setting("cpu", float, 0.0, "CPU cores to give out; 0: all there are"),
    Setting("database", str, "", "postgresql://... for the log, dicts, queues and secrets; empty: the data folder"),
    Setting("objects", str, "", "s3://bucket/prefix for large arguments and results; empty: the data folder"),
    Setting("on", str, "local", "whose machines it runs on: local or ray"),
    Setting("address", str, "", "Ray's address; empty: a new Ray on this machine"),
    Setting("agents", str, "", "HOST:PORT where agents of other machines may join; empty: nowhere"),
    Setting("memory", str, "", 'memory to give out, e.g. "8GiB"; empty: most of what there is'),
)
POLICIES = ("keep-alive", "queueing", "cold-start", "placement", "balancing", "hedging", "disruption")


def user_file() -> Path:
    return Path(platformdirs.user_config_dir("nubes")) / "config.toml"


def resolve(flags: Mapping[str, Any] | None = None, folder: Path | None = None) -> dict[str, Value]:
    """Every setting's value and its source. `flags` that are None were not given. Raises `UsageError`."""
    values = {s.name: Value(s.default, "default") for s in SETTINGS}
    for source, table in _files(folder or Path.cwd()):
        for key, given in table.items():
            setting = _find(key, source)
            values[setting.name] = Value(_checked(setting, given, source), source)
    for setting in SETTINGS:
        text = os.environ.get(setting.variable)
        if text:
            values[setting.name] = Value(_checked(setting, text, setting.variable), setting.variable)
    for key, given in (flags or {}).items():
        if given is not None:
            setting = _find(key, f"--{key}")
            values[setting.name] = Value(_checked(setting, given, f"--{key}"), f"--{key}")
    data = values["data"]
    values["data"] = Value(str(Path(data.value).expanduser().absolute()), data.source)
    return values


def _files(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """(source, settings) of the files that have a say, the weakest first."""
    tables = []
    project = next((p / "pyproject.toml" for p in (folder, *folder.parents) if (p / "pyproject.toml").is_file()), None)
    if project is not None:
        table = _read(project).get("tool", {}).get("nubes", {})
        tables.append((f"[tool.nubes] in {project}", table))
    own = user_file()
    if own.is_file():
        table = _read(own)
        profiles = table.pop("profiles", {})
        name = os.environ.get("NUBES_PROFILE") or table.pop("profile", "")
        table.pop("profile", None)
        tables.append((str(own), table))
        if name:
            if name not in profiles:
                there = ", ".join(profiles) or "none"
                raise UsageError(f"There is no profile {name!r} in {own}.", f"The profiles are: {there}.")
            tables.append((f"[profiles.{name}] in {own}", profiles[name]))
    elif os.environ.get("NUBES_PROFILE"):
        raise UsageError(f"NUBES_PROFILE is set, but there is no file {own}.", "Write it, or unset the variable.")
    return tables


def _read(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}.", "Correct the file.") from None


def _find(name: str, source: str) -> Setting:
    wanted = name.replace("_", "-")
    for setting in SETTINGS:
        if setting.name == wanted:
            return setting
    names = [s.name for s in SETTINGS]
    near = difflib.get_close_matches(wanted, names, 1)
    hint = f"Did you mean {near[0]!r}?" if near else f"The settings are: {', '.join(names)}."
    raise UsageError(f"There is no setting {name!r} ({source}).", hint)


def _checked(setting: Setting, given: Any, source: str) -> Any:
    try:
        if isinstance(given, bool) or not isinstance(given, (str, int, float)):
            raise ValueError
        value = setting.kind(given)
    except ValueError:
        what = {int: "a whole number", float: "a number", str: "text"}[setting.kind]
        raise UsageError(
            f"{setting.name} is {given!r} ({source}), which is not {what}.", f"It is {setting.about}."
        ) from None
    if setting.name == "port" and not 0 <= value <= 65_535:
        raise UsageError(
            f"port is {value} ({source}), which no port is.", "Ports are 1 to 65535; 0 takes any free one."
        )
    if setting.name == "cpu" and value < 0:
        raise UsageError(
            f"cpu is {value} ({source}), which is negative.", "Write a number of cores; 0 takes all there are."
        )
    if setting.name == "database" and value and not value.startswith(("postgresql://", "postgres://")):
        raise UsageError(f"database does not begin with postgresql:// ({source}).", f"It is {setting.about}.")
    if setting.name == "objects" and value and "://" not in value:
        raise UsageError(f"objects is {given!r} ({source}), which is no URL.", f"It is {setting.about}.")
    if setting.name == "memory" and value:
        size_bytes(value, "memory")
    return value


def shown(setting: Setting, value: Any) -> Any:
    """A value as others may see it: without a password."""
    if setting.name != "database":
        return value
    return re.sub(r"(?<=password=)[^&]+", "***", re.sub(r"(//[^:/@]*:)[^/]*@", r"\1***@", value))


def export(values: Mapping[str, Value]) -> None:
    """Hands settings on to what this process starts and imports, through the environment."""
    for setting in SETTINGS:
        found = values[setting.name]
        if found.source != "default":
            os.environ[setting.variable] = str(found.value)
