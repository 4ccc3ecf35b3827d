"""Declared state and controllers that make it so: observe, compare, act, again and again.

Objects are what somebody wants (`spec`) and what is seen of it (`status`). Controllers do not follow events: each looks
at what there is, compares it with what is wanted and takes the next step, so that one that died at any point goes on
from observation alone. Writers do not lock: they say which version they have read, and read again if it has changed.
"Borg, Omega, and Kubernetes" (ACM Queue 2016).
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import msgspec

from nubes.kernel.errors import NotFound, NubesError, UsageError

Labels = dict[str, str]


class Conflict(NubesError):
    """The object has changed since it was read: read it again, and decide anew."""

    exit_code = 75


class Object(msgspec.Struct, frozen=True, kw_only=True):
    """Something declared. `owner` is the name of what made it; `version` grows with every change in the store."""

    kind: str
    name: str
    labels: Labels = {}
    owner: str = ""
    spec: dict[str, Any] = {}
    status: dict[str, Any] = {}
    version: int = 0


def matches(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether all that the selector names is among the labels."""
    return all(labels.get(key) == value for key, value in selector.items())


class Store:
    """Objects in an SQLite file, for any number of processes. Every write is a transaction on one object."""

    def __init__(self, path: str | Path) -> None:
        self.db = sqlite3.connect(path, isolation_level=None, timeout=60.0)
        self.db.execute("PRAGMA journal_mode = wal")
        self.db.execute("PRAGMA synchronous = normal")
        self.db.execute(
            "CREATE TABLE IF NOT EXISTS objects "
            "(kind TEXT, name TEXT, version INTEGER, body BLOB, PRIMARY KEY (kind, name))"
        )
        self.db.execute("CREATE TABLE IF NOT EXISTS meta (id TEXT, version INTEGER, one INTEGER UNIQUE)")
        self.db.execute("INSERT OR IGNORE INTO meta VALUES (?, 0, 1)", (uuid.uuid4().hex,))
        self.id: str = self.db.execute("SELECT id FROM meta").fetchone()[0]

    def close(self) -> None:
        self.db.close()

    @property
    def version(self) -> int:
        """That of the newest change."""
        version: int = self.db.execute("SELECT version FROM meta").fetchone()[0]
        return version

    def get(self, kind: str, name: str) -> Object:
        """Raises `NotFound`."""
        row = self.db.execute("SELECT body FROM objects WHERE kind = ? AND name = ?", (kind, name)).fetchone()
        if row is None:
            raise NotFound(f"There is no {kind} {name!r}.", "Create it, or look whether it was deleted.")
        return msgspec.json.decode(row[0], type=Object)

    def list(self, kind: str, selector: Mapping[str, str] | None = None) -> list[Object]:
        """The objects of a kind, by name, those whose labels match if there is a selector."""
        rows = self.db.execute("SELECT body FROM objects WHERE kind = ? ORDER BY name", (kind,)).fetchall()
        objects = [msgspec.json.decode(body, type=Object) for (body,) in rows]
        return [one for one in objects if matches(one.labels, selector or {})]

    def create(self, object: Object) -> Object:
        """Raises `Conflict` if there is one of that name."""
        return self._write(object, 0)

    def update(self, object: Object) -> Object:
        """Writes it if it still has the version that `object` says; raises `Conflict` or `NotFound`."""
        if not object.version:
            raise UsageError(f"{object.kind} {object.name!r} was not read from the store.", "Use get or create.")
        return self._write(object, object.version)

    def delete(self, object: Object) -> None:
        """Raises `Conflict` if it has changed; nothing if it is gone already."""
        with closing(self.db.cursor()) as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            try:
                if self._current(object) not in (0, object.version):
                    raise _conflict(object)
                self.db.execute("DELETE FROM objects WHERE kind = ? AND name = ?", (object.kind, object.name))
                self.db.execute("UPDATE meta SET version = version + 1")
            except BaseException:
                self.db.execute("ROLLBACK")
                raise
            self.db.execute("COMMIT")

    def change(self, kind: str, name: str, edit: Callable[[Object], Object]) -> tuple[Object, int]:
        """Reads, edits and writes, again while others come between; returns the object, and how often they did."""
        tries = 0
        while True:
            before = self.get(kind, name)
            after = edit(before)
            if after == before:
                return before, tries
            try:
                return self.update(after), tries
            except Conflict:
                tries += 1

    def apply(self, kind: str, name: str, spec: dict[str, Any], labels: Labels | None = None) -> Object:
        """Declares: creates the object, or gives it this spec and these labels."""
        labels = labels or {}
        try:
            return self.create(Object(kind=kind, name=name, spec=spec, labels=labels))
        except Conflict:
            return self.change(kind, name, lambda one: msgspec.structs.replace(one, spec=spec, labels=labels))[0]

    def _current(self, object: Object) -> int:
        """Its version in the store; 0: it is not there."""
        query = "SELECT version FROM objects WHERE kind = ? AND name = ?"
        row = self.db.execute(query, (object.kind, object.name)).fetchone()
        return row[0] if row else 0

    def _write(self, object: Object, expected: int) -> Object:
        self.db.execute("BEGIN IMMEDIATE")
        try:
            current = self._current(object)
            if expected and not current:
                raise NotFound(f"{object.kind} {object.name!r} was deleted.", "Create it if it is still wanted.")
            if current != expected:
                raise _conflict(object)
            written = msgspec.structs.replace(object, version=self.version + 1)
            body = msgspec.json.encode(written)
            self.db.execute(
                "INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?)", (object.kind, object.name, written.version, body)
            )
            self.db.execute("UPDATE meta SET version = ?", (written.version,))
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")
        return written


def _conflict(object: Object) -> Conflict:
    return Conflict(f"{object.kind} {object.name!r} has changed, or is there already.", "Read it and decide anew.")


class Controller(Protocol):
    """Makes one kind of objects so. What it does may be interrupted anywhere and be done twice without harm."""

    def reconcile(self, store: Store) -> int:
        """Takes the steps that are due, and returns how many those were; 0: all is as declared."""
        ...


class Deployments:
    """Keeps as many `process` objects of each `deployment` as its spec says.

    A deployment's spec is `{"replicas": n, "selector": {...}, "template": {"labels": {...}, "spec": {...}}}`. Processes
    are its own by owner and labels: one whose labels are edited is let go, runs on, and is replaced.
    """

    def reconcile(self, store: Store) -> int:
        processes = store.list("process")  # first: what has no owner afterwards has lost it
        deployments = {one.name: one for one in store.list("deployment")}
        steps = 0
        for process in processes:
            if process.owner and process.owner not in deployments:
                steps += _tried(lambda process=process: store.delete(process))  # type: ignore[misc]
        for one in deployments.values():
            steps += self._one(store, one, [process for process in processes if process.owner == one.name])
        return steps

    def _one(self, store: Store, deployment: Object, owned: list[Object]) -> int:
        selector, template = deployment.spec.get("selector", {}), deployment.spec["template"]
        steps = 0
        mine: list[Object] = []
        for process in owned:
            if matches(process.labels, selector):
                mine.append(process)
            else:
                free = msgspec.structs.replace(process, owner="")
                steps += _tried(lambda free=free: store.update(free))  # type: ignore[misc]
        wanted = deployment.spec["replicas"]
        for process in sorted(mine, key=lambda one: one.version)[wanted:]:
            steps += _tried(lambda process=process: store.delete(process))  # type: ignore[misc]
        for _ in range(wanted - len(mine)):
            made = Object(
                kind="process",
                name=f"{deployment.name}-{store.version}",
                labels={**selector, **template.get("labels", {})},
                owner=deployment.name,
                spec=template["spec"],
            )
            steps += _tried(lambda made=made: store.create(made))  # type: ignore[misc]
        if deployment.status.get("replicas") != len(mine):
            seen = msgspec.structs.replace(deployment, status={**deployment.status, "replicas": len(mine)})
            steps += _tried(lambda: store.update(seen))
        return steps


def _tried(write: Callable[[], object]) -> int:
    """Does a write. If somebody was there before, what to do is seen at the next look: that counts as a step too."""
    try:
        write()
    except (Conflict, NotFound):
        pass
    return 1


def settle(store: Store, controllers: Iterable[Controller], rounds: int = 1000) -> int:
    """Lets controllers look in turns until none has anything to do; returns the rounds it took."""
    team = list(controllers)
    for number in range(rounds):
        if not sum([one.reconcile(store) for one in team]):
            return number
    raise NubesError(f"{len(team)} controllers are not done after {rounds} rounds.", "See which two undo each other.")
