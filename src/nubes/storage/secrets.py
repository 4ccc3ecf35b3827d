"""Secret: environment variables that are not written into programs or logs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from nubes import client as clients
from nubes.drivers.local.secrets import ANONYMOUS
from nubes.kernel.errors import UsageError
from nubes.storage.names import checked
from nubes.twins import Ask, asking

_LINE = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)")


class SecretObjects:
    """The named secrets: `Secret.objects`."""

    @asking
    async def create(self, ask: Ask, name: str, values: Mapping[str, str], *, allow_existing: bool = False) -> None:
        """Stores a secret. Raises `UsageError` if there is one of that name."""
        checked("secret", name)
        await ask("secret_put", name=name, values=_texts(values), allow_existing=allow_existing)

    @asking
    async def list(self, ask: Ask) -> list[Secret]:
        """All that have a name. What is in them is told to functions only."""
        return [Secret.from_name(name) for name in await ask("secret_list")]

    @asking
    async def delete(self, ask: Ask, name: str, *, allow_missing: bool = False) -> None:
        """Removes a secret. Raises `NotFound` if there is none."""
        await ask("secret_delete", name=checked("secret", name), allow_missing=allow_missing)


class Secret:
    """Environment variables for functions: `@app.function(secrets=[...])`.

    Their values are kept in files that only you can read; they stand in no log, and nothing shows them.
    """

    objects: ClassVar[SecretObjects] = SecretObjects()

    def __init__(
        self, name: str, values: Callable[[], Mapping[str, str]] | None, required_keys: Iterable[str] = ()
    ) -> None:
        self.name = name
        self._values = values
        self._required = tuple(required_keys)

    @classmethod
    def from_name(cls, name: str, *, required_keys: Iterable[str] = ()) -> Secret:
        """A secret that was stored before; deploying fails if it is not there, or lacks one of `required_keys`."""
        return cls(checked("secret", name), None, required_keys)

    @classmethod
    def from_dict(cls, values: Mapping[str, str | None]) -> Secret:
        """A secret of these variables; those that are None are left out."""
        texts = _texts({key: value for key, value in values.items() if value is not None})
        return cls(_own_name(), lambda: texts)

    @classmethod
    def from_local_environ(cls, names: Iterable[str]) -> Secret:
        """Variables of this process, as they are when the app is deployed."""
        wanted = tuple(names)

        def read() -> Mapping[str, str]:
            missing = [name for name in wanted if name not in os.environ]
            if missing:
                raise UsageError(
                    f"Secret.from_local_environ: {', '.join(missing)} is not set here.", "Set it and deploy again."
                )
            return {name: os.environ[name] for name in wanted}

        return cls(_own_name(), read)

    @classmethod
    def from_dotenv(cls, path: str | Path | None = None, *, filename: str = ".env") -> Secret:
        """The variables in `path` (a file, or a folder from which `filename` is looked for upwards; default: here)."""
        return cls(_own_name(), lambda: _dotenv(Path(path) if path else Path.cwd(), filename))

    def hand_in(self, client: clients.Client) -> None:
        """Before a deployment: stores what this secret holds, or checks that it is there. Raises `NotFound`."""
        if self._values is None:
            client.ask("secret_check", name=self.name, required=list(self._required))
        else:
            client.ask("secret_put", name=self.name, values=dict(self._values()), allow_existing=True)

    def __reduce__(self) -> tuple[Any, ...]:
        return Secret, (self.name, None, self._required)

    def __repr__(self) -> str:
        return f"Secret({self.name!r})"


def _own_name() -> str:
    """Secrets without a name get one that says nothing of what is in them."""
    return f"{ANONYMOUS}{os.urandom(8).hex()}"


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    for key, value in values.items():
        if not isinstance(key, str) or not isinstance(value, str) or "=" in key or not key or "\0" in key + value:
            raise UsageError(f"{key!r} in a secret cannot be an environment variable.", "Names and values are text.")
    return dict(values)


def _dotenv(path: Path, filename: str) -> dict[str, str]:
    """The variables in a file of `NAME=value` lines; values may be quoted, `#` begins a comment."""
    found = path
    if not path.is_file():
        places = [folder / filename for folder in (path.absolute(), *path.absolute().parents)]
        found = next((place for place in places if place.is_file()), path)
    if not found.is_file():
        raise UsageError(
            f"There is no {filename} in {path.absolute()} or above it.", "Name the file: from_dotenv(path)."
        )
    values: dict[str, str] = {}
    for number, line in enumerate(found.read_text().splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise UsageError(f"Line {number} of {found} is not NAME=value.", "Correct it.")
        values[match[1]] = _unquoted(match[2].strip())
    return values


def _unquoted(text: str) -> str:
    if text[:1] in ("'", '"') and (end := text.find(text[0], 1)) > 0:
        return text[1:end].replace("\\n", "\n") if text[0] == '"' else text[1:end]
    return re.split(r"\s#", text, maxsplit=1)[0].strip()
