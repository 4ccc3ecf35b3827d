"""Virtual environments for functions: built with `uv`, named by their content, kept in the data folder."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nubes.kernel.errors import NubesError, Unavailable, UsageError

NEEDS = ("nubes", "cloudpickle", "cronsim", "msgspec", "platformdirs")  # what nubes imports where functions run
_RUNTIME = ".runtime"
_BUILDING = ".building-"
_LAST_LINES = 6
Tell = Callable[[str], None]


class Environments:
    """The environments in `folder`, one folder each; beside it the log of its building.

    An environment sees its own packages first, then those of nubes' that stand in NEEDS: links in one folder, which is
    the last entry of its `sys.path`. Of what else is installed where nubes runs it sees nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._builds: dict[str, tuple[asyncio.Task[None], list[Tell]]] = {}
        self._linked = False

    def python(self, environment: str) -> Path | None:
        """The interpreter of an environment; None if it has not been built."""
        path = self.folder / environment / "bin" / "python"
        if not path.exists():
            return None
        self._link()
        return path

    async def build(self, environment: str, definition: dict[str, Any], tell: Tell) -> None:
        """Builds an environment unless it is there; those who want the same one share its building and hear its log.

        Raises `NubesError` if it cannot be built. When nobody waits for it any more, it is given up.
        """
        if not environment or self.python(environment) is not None:
            return
        task, tells = self._builds.get(environment, (None, []))
        if task is None:
            task = asyncio.get_running_loop().create_task(self._build(environment, definition, tells))
            self._builds[environment] = task, tells
        tells.append(tell)
        try:
            await asyncio.shield(task)
        finally:
            tells.remove(tell)
            if not tells:
                del self._builds[environment]
                task.cancel()

    def close(self) -> None:
        for task, _ in self._builds.values():
            task.cancel()

    async def _build(self, environment: str, definition: dict[str, Any], tells: list[Tell]) -> None:
        here = f"{sys.version_info.major}.{sys.version_info.minor}"
        if definition["python"] != here:
            raise UsageError(
                f"The image is for Python {definition['python']}, but the control plane runs on {here}.",
                "Use the same Python on both sides.",
            )
        self._link()
        building = self.folder / f"{_BUILDING}{environment}-{os.urandom(4).hex()}"
        try:
            with open(self.folder / f"{environment}.log", "w") as log:
                work = _Work(building, log, tells)
                await work.create()
                for step in definition["steps"]:
                    await work.step(*step)
                await work.check()
            building.rename(self.folder / environment)  # only what is whole has its name
        finally:
            shutil.rmtree(building, ignore_errors=True)

    def _link(self) -> None:
        """Puts links to what functions need of nubes into one folder, anew each time: nubes may have moved."""
        if self._linked:
            return
        for left in self.folder.glob(f"{_BUILDING}*"):  # by a control plane that was killed
            shutil.rmtree(left, ignore_errors=True)
        runtime = self.folder / _RUNTIME
        shutil.rmtree(runtime, ignore_errors=True)
        runtime.mkdir(parents=True)
        for name in NEEDS:
            spec = importlib.util.find_spec(name)
            assert spec is not None
            source = Path(next(iter(spec.submodule_search_locations or [str(spec.origin)])))
            (runtime / source.name).symlink_to(source)
        about = importlib.metadata.distribution("nubes")
        described = Path(str(about.locate_file(f"nubes-{about.version}.dist-info")))
        if described.is_dir():  # where it names the policies in the box
            (runtime / described.name).symlink_to(described)
        self._linked = True


class _Work:
    """One building: commands run one after the other, and what they say goes into the log and to those who wait."""

    def __init__(self, folder: Path, log: Any, tells: list[Tell]) -> None:
        self._folder = folder
        self._log = log
        self._tells = tells
        self._python = str(folder / "bin" / "python")

    async def create(self) -> None:
        await self._run(
            "making the environment",
            _uv(),
            "venv",
            "--no-project",
            "--quiet",
            "--relocatable",
            "--python",
            sys.executable,
            self._folder,
        )
        packages = next(self._folder.glob("lib/python*/site-packages"))
        (packages / "nubes-runtime.pth").write_text(f"../../../../{_RUNTIME}\n")  # relative to where it stands

    async def step(self, kind: str, *step: Any) -> None:
        if kind == "install":
            names, options, _ = step
            command = (_uv(), "pip", "install", "--python", self._python, *options, "--", *names)
            await self._run(f"installing {', '.join(names)}", *command)
        elif kind == "run":
            lines, variables = step
            for line in lines:
                await self._run(f"the command {line!r}", "/bin/sh", "-c", line, env=variables)
        elif kind == "copy":
            source, _ = step
            target = next(self._folder.glob("lib/python*/site-packages")) / Path(source).name
            if os.path.isdir(source):
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", ".git"))
            else:
                shutil.copy2(source, target)
        else:
            raise UsageError(
                f"This control plane knows no build step {kind!r}.", "Use the same version of nubes on both sides."
            )

    async def check(self) -> None:
        """Whether nubes itself runs beside the packages that came in."""
        await self._run(
            "starting nubes beside these packages",
            self._python,
            "-P",
            "-c",
            "import nubes.drivers.local.node, nubes.app",
        )

    async def _run(self, what: str, *command: object, env: Mapping[str, str] | None = None) -> None:
        variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        variables |= {
            "VIRTUAL_ENV": str(self._folder),
            "PATH": f"{self._folder / 'bin'}{os.pathsep}{variables.get('PATH', os.defpath)}",
        }
        words = [str(word) for word in command]
        self._say(f"$ {shlex.join(words)}\n", only_log=True)
        process = await asyncio.create_subprocess_exec(
            *words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            env={**variables, **(env or {})}, start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        last: list[str] = []
        try:
            while line := (await process.stdout.readline()).decode(errors="replace"):
                self._say(line)
                if not line.startswith("Using Python"):  # uv's greeting
                    last = [*last, line.strip()][-_LAST_LINES:]
            status = await process.wait()
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, 9)
        if status:
            said = " ".join(filter(None, last)) or f"it ended with code {status}"
            raise NubesError(
                f"The image could not be built: {what} failed: {said}", f"The whole log is in {self._log.name}."
            )

    def _say(self, line: str, only_log: bool = False) -> None:
        self._log.write(line)
        self._log.flush()
        for tell in () if only_log else tuple(self._tells):
            tell(line)


def _uv() -> str:
    try:
        from uv import find_uv_bin

        return str(find_uv_bin())
    except (ImportError, FileNotFoundError):
        found = shutil.which("uv")
        if found is None:
            raise Unavailable("Images need the program uv, and it is not installed.", "Run `pip install uv`.") from None
        return found
