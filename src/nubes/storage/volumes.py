"""Volume: a folder that functions and clients share."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from nubes import client as clients
from nubes.kernel.errors import NotFound, UsageError
from nubes.storage.names import checked
from nubes.twins import threaded

_CHUNK = 1 << 20


@dataclass(frozen=True)
class FileEntry:
    """A file or folder: `path` from the volume's root, `type` "file" or "directory", `mtime` epoch seconds."""

    path: str
    type: str
    mtime: float
    size: int


class VolumeObjects:
    """The named volumes: `Volume.objects`."""

    @threaded
    def create(self, name: str, *, allow_existing: bool = False) -> None:
        """Makes a volume. Raises `UsageError` if there is one of that name."""
        try:
            _folder(checked("volume", name)).mkdir(parents=True, exist_ok=allow_existing)
        except FileExistsError:
            raise UsageError(
                f"There is a volume named {name!r} already.", "Choose another name, or allow_existing=True."
            ) from None

    @threaded
    def list(self) -> list[Volume]:
        """All volumes, in the order of their names."""
        return [Volume(path.name) for path in sorted(_folder("").iterdir()) if not path.name.startswith(EPHEMERAL)]

    @threaded
    def delete(self, name: str, *, allow_missing: bool = False) -> None:
        """Removes a volume and all that is in it. Raises `NotFound` if there is none."""
        folder = _folder(checked("volume", name))
        if folder.is_dir():
            shutil.rmtree(folder)
        elif not allow_missing:
            raise NotFound(f"There is no volume named {name!r}.", _there_are())


class Volume:
    """A named folder in the data folder. Functions that mount it, `volumes={"/models": volume}`, find it at that path.

    All who use it share one file system, so that a write is seen by all at once.
    """

    objects: ClassVar[VolumeObjects] = VolumeObjects()

    def __init__(self, name: str, create_if_missing: bool = False) -> None:
        self.name = checked("volume", name)
        self._create = create_if_missing

    @classmethod
    def from_name(cls, name: str, *, create_if_missing: bool = False) -> Volume:
        """The volume of that name. Nothing is looked up until it is used; then `NotFound` if there is none."""
        return cls(name, create_if_missing)

    @classmethod
    @contextlib.contextmanager
    def ephemeral(cls) -> Iterator[Volume]:
        """`with Volume.ephemeral() as volume:` a volume that is gone after the block."""
        made = cls(f"{EPHEMERAL}{os.urandom(8).hex()}", True)
        made.hand_in(clients.connect())
        try:
            yield made
        finally:
            shutil.rmtree(made.path, ignore_errors=True)

    @property
    def path(self) -> Path:
        """Where the volume's files lie on this machine. Raises `NotFound` if it does not exist and may not be made."""
        folder = _folder(self.name)
        if not folder.is_dir():
            if not self._create:
                hint = f"Write Volume.from_name({self.name!r}, create_if_missing=True); {_there_are()}"
                raise NotFound(f"There is no volume named {self.name!r}.", hint)
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def hand_in(self, client: clients.Client) -> None:
        """Before a deployment: makes the volume if it may be made. Raises `NotFound`."""
        _ = self.path

    @threaded
    def commit(self) -> None:
        """Nothing is to be done: writes are seen by all at once."""

    @threaded
    def reload(self) -> None:
        """Nothing is to be done: writes of others are there at once."""

    @threaded
    def listdir(self, path: str = "/", *, recursive: bool = False) -> list[FileEntry]:
        """What is in a folder of the volume, or below it, in the order of the names; of a file, the file itself."""
        root, start = self.path.resolve(), self._within(path)
        if start.is_dir():
            return [_entry(root, found) for found in sorted(start.rglob("*") if recursive else start.iterdir())]
        return [_entry(root, self._existing(path))]

    def iterdir(self, path: str = "/", *, recursive: bool = True) -> Iterator[FileEntry]:
        """The same, one after the other."""
        yield from self.listdir(path, recursive=recursive)

    def read_file(self, path: str) -> Iterator[bytes]:
        """The content of a file, in pieces."""
        with open(self._existing(path), "rb") as file:
            while piece := file.read(_CHUNK):
                yield piece

    @threaded
    def remove_file(self, path: str, *, recursive: bool = False) -> None:
        """Removes a file; a folder only with `recursive`."""
        found = self._existing(path)
        if not found.is_dir() or found.is_symlink():
            found.unlink()
        elif not recursive:
            raise UsageError(f"{path!r} is a folder.", "Write recursive=True to remove it and all that is in it.")
        else:
            shutil.rmtree(found)

    @threaded
    def copy_files(self, src_paths: Sequence[str], dst_path: str, *, recursive: bool = False) -> None:
        """Copies files within the volume: one to a path, or any number into a folder."""
        target = self._within(dst_path)
        if len(src_paths) > 1 and not target.is_dir():
            raise UsageError(f"{dst_path!r} is no folder of the volume.", "Several files are copied into a folder.")
        for path in src_paths:
            source = self._existing(path)
            to = target / source.name if target.is_dir() else target
            to.parent.mkdir(parents=True, exist_ok=True)
            if not source.is_dir():
                shutil.copy2(source, to)
            elif recursive:
                shutil.copytree(source, to)
            else:
                raise UsageError(f"{path!r} is a folder.", "Write recursive=True to copy it.")

    @contextlib.contextmanager
    def batch_upload(self, force: bool = False) -> Iterator[Upload]:
        """`with volume.batch_upload() as batch: batch.put_file(...)`: the files appear together at the block's end.

        Without `force`, a file that is there already is an error (`UsageError`), and none appears.
        """
        upload = Upload(self, force)
        try:
            yield upload
            upload.finish()
        finally:
            shutil.rmtree(upload.staging, ignore_errors=True)

    def _within(self, path: str) -> Path:
        """The place of `path`, which starts from the volume's root. Raises `UsageError` if it leads out of it."""
        root = self.path.resolve()
        place = root / os.path.normpath("/" + str(path)).lstrip("/")
        if not (place.parent if place != root else place).resolve().is_relative_to(root):
            raise UsageError(f"{path!r} leads out of the volume.", "Name a path within it.")
        return place

    def _existing(self, path: str) -> Path:
        place = self._within(path)
        if not place.exists():
            raise NotFound(f"Volume {self.name!r} has no {path!r}.", "volume.listdir() shows what is there.")
        return place

    def __reduce__(self) -> tuple[Any, ...]:
        return Volume, (self.name, self._create)

    def __repr__(self) -> str:
        return f"Volume({self.name!r})"


class Upload:
    """Files on their way into a volume."""

    def __init__(self, volume: Volume, force: bool) -> None:
        self._volume = volume
        self._force = force
        self._places: list[tuple[Path, Path]] = []
        self.staging = volume.path.with_name(f"{EPHEMERAL}{os.urandom(8).hex()}")
        self.staging.mkdir()

    def put_file(self, local_file: str | Path | BinaryIO, remote_path: str) -> None:
        """Adds a file: its path here, or an open binary file."""
        place = self._volume._within(remote_path)
        if place.exists() and not self._force:
            raise UsageError(
                f"Volume {self._volume.name!r} has {remote_path!r} already.", "Write batch_upload(force=True)."
            )
        staged = self.staging / str(len(self._places))
        if isinstance(local_file, (str, Path)):
            shutil.copy2(local_file, staged)
        else:
            with open(staged, "wb") as file:
                shutil.copyfileobj(local_file, file)
        self._places.append((staged, place))

    def put_directory(self, local_path: str | Path, remote_path: str, recursive: bool = True) -> None:
        """Adds the files in a folder, or below it."""
        root = Path(local_path)
        for found in sorted(root.rglob("*") if recursive else root.iterdir()):
            if found.is_file():
                self.put_file(found, f"{remote_path}/{found.relative_to(root)}")

    def finish(self) -> None:
        for staged, place in self._places:
            place.parent.mkdir(parents=True, exist_ok=True)
            staged.replace(place)


EPHEMERAL = "ephemeral-"


def _folder(name: str) -> Path:
    return Path(clients.connect().folder) / "volumes" / name


def _there_are() -> str:
    names = [path.name for path in sorted(_folder("").iterdir()) if not path.name.startswith(EPHEMERAL)]
    return f"There are: {', '.join(names) or 'none'}."


def _entry(root: Path, path: Path) -> FileEntry:
    stat = path.stat()
    kind = "directory" if path.is_dir() else "file"
    return FileEntry(str(path.relative_to(root)), kind, stat.st_mtime, stat.st_size)
