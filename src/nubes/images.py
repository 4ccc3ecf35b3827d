"""Image: the Python packages a function finds, as a virtual environment that is built once and kept."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from nubes.kernel.errors import UsageError
from nubes.place import is_local

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
Step = tuple[Any, ...]


class _Elsewhere:
    """A word of container images that means nothing without containers: calling it says what to do instead."""

    def __init__(self, instead: str) -> None:
        self._instead = instead

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> Callable[..., NoReturn]:
        def refuse(*_: Any, **__: Any) -> NoReturn:
            raise UsageError(
                f"Image.{self._name} needs containers, and functions here are processes of this machine.", self._instead
            )

        refuse.__doc__ = f"Not in nubes, which runs no containers. {self._instead}"
        return refuse


_ON_THE_MACHINE = "Install it on the machine itself; functions find it there."
_PIP = "Start from Image.debian_slim() and name the packages with .pip_install(...)."
_FILES = "Functions read this machine's files: use an absolute path, or mount a Volume."


@dataclass(frozen=True)
class Image:
    """What is added to this machine's Python, step by step; every method returns a new image.

    Without a step, functions run in the interpreter that nubes itself runs in and find its packages. With one, they
    run in an environment of their own that holds what the steps install, what nubes needs to run there, and no more.
    Equal steps are the same environment, built once. In the functions themselves an image is a name only: its steps
    are not looked at again.
    """

    steps: tuple[Step, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()

    @classmethod
    def debian_slim(cls, python_version: str | None = None) -> Image:
        """This machine's Python. Raises `UsageError` for another version."""
        if python_version is not None and not f"{python_version}.".startswith(f"{PYTHON}."):
            raise UsageError(
                f"python_version={python_version!r} is not the {PYTHON} that nubes runs on here.",
                f"Leave it out, or install nubes under Python {python_version}.",
            )
        return cls()

    def pip_install(
        self, *packages: str | list[str], index_url: str | None = None, extra_index_url: str | None = None,
        find_links: str | None = None, pre: bool = False, extra_options: str = "",
    ) -> Image:  # fmt: skip
        """Adds packages, as pip names them; also paths of wheels and of project folders."""
        names = [name for given in packages for name in ([given] if isinstance(given, str) else given)]
        if not names or not is_local():
            return self
        options = [part for option, value in (
            ("--index-url", index_url), ("--extra-index-url", extra_index_url), ("--find-links", find_links),
        ) if value for part in (option, value)]  # fmt: skip
        options += (["--prerelease=allow"] if pre else []) + extra_options.split()
        located = [_located(name) for name in names]
        return self._with("install", [name for name, _ in located], options, [print for _, print in located if print])

    uv_pip_install = pip_install

    def pip_install_from_requirements(self, requirements_txt: str | Path, **options: Any) -> Image:
        """Adds the packages that a requirements file lists, as it is now."""
        if not is_local():
            return self
        path = Path(requirements_txt)
        if not path.is_file():
            raise UsageError(f"There is no requirements file {path}.", "Name one that exists.")
        lines = [line.split(" #")[0].strip() for line in path.read_text().splitlines()]
        wanted = [line for line in lines if line and not line.startswith("#")]
        for line in wanted:
            if line.startswith("-"):
                raise UsageError(
                    f"{line!r} in {path} is an option.", "List the packages alone, and give options to the method."
                )
        return self.pip_install(wanted, **options)

    def pip_install_from_pyproject(
        self, pyproject_toml: str | Path, optional_dependencies: Sequence[str] = (), **options: Any
    ) -> Image:
        """Adds the dependencies that a `pyproject.toml` lists, and those of the extras named."""
        if not is_local():
            return self
        path = Path(pyproject_toml)
        if not path.is_file():
            raise UsageError(f"There is no {path}.", "Name a pyproject.toml that exists.")
        project = tomllib.loads(path.read_text()).get("project", {})
        extras = project.get("optional-dependencies", {})
        unknown = [extra for extra in optional_dependencies if extra not in extras]
        if unknown:
            raise UsageError(f"{path} has no extra {', '.join(unknown)}.", f"It has: {', '.join(extras) or 'none'}.")
        wanted = [
            *project.get("dependencies", []),
            *(name for extra in optional_dependencies for name in extras[extra]),
        ]
        return self.pip_install(wanted, **options)

    def run_commands(self, *commands: str | list[str]) -> Image:
        """Runs shell commands in the environment when it is built, with its `python` first on the path."""
        lines = [line for given in commands for line in ([given] if isinstance(given, str) else given)]
        return self._with("run", lines, dict(self.variables)) if lines else self

    def env(self, variables: Mapping[str, str]) -> Image:
        """Sets environment variables, for the functions and for later commands."""
        for key, value in variables.items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise UsageError(f"{key!r}={value!r} cannot be an environment variable.", "Names and values are text.")
        return replace(self, variables=tuple({**dict(self.variables), **variables}.items()))

    def add_local_python_source(self, *modules: str) -> Image:
        """Adds modules that this process can import: a copy of what they are now."""
        image = self
        for name in modules if is_local() else ():
            spec = importlib.util.find_spec(name) if name.isidentifier() else None
            places = list(spec.submodule_search_locations or ()) if spec else []
            origin = places[0] if places else spec.origin if spec else None
            if origin is None or not os.path.exists(origin):
                raise UsageError(
                    f"{name!r} is no module that can be found here.", "Name a top-level module or package."
                )
            image = image._with("copy", os.path.abspath(origin), _digest(Path(origin)))
        return image

    @property
    def id(self) -> str:
        """A name made from what is in the image; empty if nothing is added to this machine's Python."""
        if not self.steps:
            return ""
        return hashlib.sha256(msgspec.msgpack.encode(self.definition())).hexdigest()[:16]

    def definition(self) -> dict[str, Any]:
        """What the control plane builds it from."""
        return {"python": PYTHON, "base": sys.base_prefix, "steps": [list(step) for step in self.steps]}

    @contextlib.contextmanager
    def imports(self) -> Iterator[None]:
        """`with image.imports(): import torch`: packages that may be missing outside the image."""
        try:
            yield
        except ImportError:
            if not is_local() or not self.id:
                raise

    def _with(self, *step: Any) -> Image:
        return replace(self, steps=(*self.steps, step))

    apt_install = _Elsewhere(_ON_THE_MACHINE)
    from_registry = _Elsewhere(_PIP)
    from_aws_ecr = _Elsewhere(_PIP)
    from_gcp_artifact_registry = _Elsewhere(_PIP)
    from_dockerfile = _Elsewhere(_PIP)
    from_scratch = _Elsewhere(_PIP)
    dockerfile_commands = _Elsewhere("Use .run_commands(...) for what is done in the environment.")
    micromamba = _Elsewhere(_PIP)
    micromamba_install = _Elsewhere(_PIP)
    uv_sync = _Elsewhere("Use .pip_install_from_pyproject(path).")
    poetry_install_from_file = _Elsewhere("Use .pip_install_from_pyproject(path).")
    pip_install_private_repos = _Elsewhere('Use .pip_install("git+https://..."); git here knows your credentials.')
    run_function = _Elsewhere("Call the function once, or use .run_commands('python -c ...').")
    add_local_file = _Elsewhere(_FILES)
    add_local_dir = _Elsewhere(_FILES)
    workdir = _Elsewhere("Call os.chdir(path) in the function.")
    shell = _Elsewhere("Commands run in /bin/sh.")
    entrypoint = _Elsewhere("The function is what runs.")
    cmd = _Elsewhere("The function is what runs.")


def _located(name: str) -> tuple[str, str]:
    """A requirement, and a digest of its content if it is a path on this machine."""
    path = Path(name.partition("[")[0]).expanduser()
    if not ((os.sep in name or name.endswith((".whl", ".tar.gz"))) and "://" not in name and " @ " not in name):
        return name, ""
    if not path.exists():
        raise UsageError(f"There is no {name} to install.", "Name a wheel or a project folder that exists.")
    _, bracket, extras = name.partition("[")
    return str(path.absolute()) + bracket + extras, _digest(path)


def _digest(path: Path) -> str:
    """One hash for a file, or for all files below a folder."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(found for found in path.rglob("*") if found.is_file())
    for file in files:
        inside = file.relative_to(path)
        if not {"__pycache__", ".git"} & set(inside.parts):
            digest.update(f"{inside}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]
