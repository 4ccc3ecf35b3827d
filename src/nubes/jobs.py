"""Jobs of an `Executor` and the code they run: what is stored, and what instances do with it."""

from __future__ import annotations

import os
import pickle
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from nubes.kernel.errors import RemoteError, UsageError

_INSTALLED = tuple(sysconfig.get_path(kind) + os.sep for kind in ("stdlib", "platstdlib", "purelib", "platlib"))
_code: dict[str, Callable[..., Any]] = {}


class Job:
    """A stored job: code hash and arguments in, one result file an item out. A result, once there, never changes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create(self, digest: str, items: list[tuple[Any, ...]]) -> None:
        """Stores a new job, or checks that this one is the same size as what is stored."""
        if (self.folder / "job").exists():
            stored = len(self.spans()[1])
            if stored != len(items):
                raise UsageError(
                    f"Job {self.folder.name!r} has {stored} items, not {len(items)}.", "Give it another id."
                )
            return
        (self.folder / "results").mkdir(parents=True, exist_ok=True)
        pickled = [dumps(args) for args in items]
        put(self.folder / "arguments", b"".join(pickled))
        put(self.folder / "job", pickle.dumps((digest, [len(one) for one in pickled])))

    def spans(self) -> tuple[str, list[int]]:
        """The code's hash, and the length of each item's arguments."""
        digest, lengths = pickle.loads((self.folder / "job").read_bytes())
        return digest, lengths

    def arguments(self, index: int) -> tuple[str, tuple[Any, ...]]:
        digest, lengths = self.spans()
        with open(self.folder / "arguments", "rb") as file:
            file.seek(sum(lengths[:index]))
            args: tuple[Any, ...] = pickle.loads(file.read(lengths[index]))
        return digest, args

    def finished(self) -> set[int]:
        """The items that have a result: one listing, however many there are."""
        return {int(name) for name in os.listdir(self.folder / "results") if name.isdigit()}

    def result(self, index: int) -> tuple[Any, ...]:
        value: tuple[Any, ...] = pickle.loads((self.folder / "results" / str(index)).read_bytes())
        return value

    def answer(self, index: int, value: bytes) -> None:
        """Stores a result, unless there is one already: of two runs of an item one is seen."""
        path = self.folder / "results" / str(index)
        temporary = path.with_name(f"{index}.{os.getpid()}")
        temporary.write_bytes(value)
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        temporary.unlink()


# -- in the instance -----------------------------------------------------------------------------------------------


def direct(jobs: str, digest: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Runs one call whose arguments and result travel with it."""
    return attempt(Path(jobs), digest, args)


def stored(folder: str, index: int) -> None:
    """Runs one item of a stored job, unless it has its result already."""
    job = Job(Path(folder))
    if index not in job.finished():
        digest, args = job.arguments(index)
        job.answer(index, dumps(attempt(job.folder.parent, digest, args)))


def attempt(jobs: Path, digest: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """(True, value) or (False, exception or None, its text, its traceback)."""
    try:
        if digest not in _code:
            _code[digest] = cloudpickle.loads((jobs / "code" / digest).read_bytes())
        return True, _code[digest](*args)
    except Exception as error:
        text = traceback.format_exc()
        try:
            cloudpickle.loads(dumps(error))
        except Exception:
            return False, None, f"{type(error).__name__}: {error}", text
        return False, error, "", text


def unwrap(value: tuple[Any, ...]) -> Any:
    """The value of an attempt; raises what it raised."""
    if value[0]:
        return value[1]
    raise failure(value)


def failure(value: tuple[Any, ...]) -> BaseException:
    """The exception of an attempt that failed, with its remote traceback as a note."""
    _, error, summary, text = value
    raised: BaseException = error if error is not None else RemoteError(summary)
    raised.add_note(text)
    return raised


# -- code ----------------------------------------------------------------------------------------------------------


def dumps(value: Any) -> bytes:
    """Pickles with closures, lambdas and the modules the user wrote: all that an installed package does not bring."""
    registered = [module for module in list(sys.modules.values()) if _is_local(module)]
    for module in registered:
        cloudpickle.register_pickle_by_value(module)
    try:
        data: bytes = cloudpickle.dumps(value)
        return data
    finally:
        for module in registered:
            cloudpickle.unregister_pickle_by_value(module)


def _is_local(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    name = getattr(module, "__name__", "")
    if not file or name in ("__main__", "") or name.partition(".")[0] == "nubes" or sys.modules.get(name) is not module:
        return False
    if name in cloudpickle.list_registry_pickle_by_value():
        return False
    return not file.startswith(_INSTALLED) and "site-packages" not in file


def put(path: Path, data: bytes) -> None:
    """A file that is there as a whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
