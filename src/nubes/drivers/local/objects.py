"""Large buffers in an object store, by URL: anything that obstore knows. Needs the extra `s3`.

Keys and endpoint come from the variables that the store's own tools use (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, ...).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from nubes.kernel.errors import NotFound, Unavailable, UsageError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

PREFIX = "obj-"  # how the names of objects begin
_OWNER = "nubes.owner"  # the object that says whose the others are
_RETRIES, _RETRY_S = 5, 20
_user = 0  # the process that uses the store: the threads it needs are not there in a fork


def place(text: str, otherwise: Path) -> str:
    """Where objects go: a folder, also for `file://`, or a URL. Raises `UsageError`."""
    if not text:
        return str(otherwise)
    from urllib.parse import unquote, urlsplit

    parts = urlsplit(text)
    if parts.scheme == "file":
        return unquote(parts.path).rstrip("/")
    if not parts.scheme or not (parts.netloc or parts.scheme == "memory"):
        raise UsageError(f"{text!r} is no URL of an object store.", "Write s3://bucket/prefix.")
    return text.rstrip("/")


def is_url(text: str) -> bool:
    return "://" in text


def put(url: str, buffers: Sequence[memoryview], spans: Sequence[tuple[int, int]]) -> None:
    """Stores buffers, each at its place, as one object; it is there whole or not at all. Raises `Unavailable`."""
    store, name = _of(url)
    try:
        _obstore().put(store, name, _laid_out(buffers, spans))
    except Exception as error:
        _fail("written", url, error)


def get(url: str) -> bytearray:
    """An object's content, for the caller to write into. Raises `NotFound`, `Unavailable`."""
    store, name = _of(url)
    try:
        return bytearray(memoryview(_obstore().get(store, name).bytes()))
    except FileNotFoundError:
        raise NotFound(f"The object {url} is gone.", "Results are kept for a day.") from None
    except Exception as error:
        _fail("read", url, error)


def listed(base: str) -> Iterator[tuple[str, float]]:
    """(name, when it was last changed, in epoch seconds) of the objects under `base`. Raises `Unavailable`."""
    try:
        for chunk in _obstore().list(_store(base)):
            yield from ((one["path"], one["last_modified"].timestamp()) for one in chunk)
    except Exception as error:
        _fail("listed", base, error)


def remove(base: str, names: Iterable[str]) -> None:
    """Removes objects under `base`. Raises `Unavailable`."""
    try:
        _obstore().delete(_store(base), list(names))
    except Exception as error:
        _fail("removed", base, error)


def claim(base: str, cloud: str) -> None:
    """Makes `base` that of this cloud, so that no other removes what is there. Raises `UsageError`, `Unavailable`."""
    mark = f"{base}/{_OWNER}"
    own = cloud.encode()
    try:
        if is_url(base):
            owner = bytes(get(mark))
        else:
            Path(base).mkdir(parents=True, exist_ok=True, mode=0o700)
            owner = Path(mark).read_bytes()
    except NotFound:
        owner = own
        put(mark, [memoryview(own)], [(0, len(own))])
    except FileNotFoundError:
        owner = own
        Path(mark).write_bytes(own)
    if owner != own:
        raise UsageError(f"The objects at {base} are those of another nubes.", "Choose another bucket or prefix.")


def _laid_out(buffers: Sequence[memoryview], spans: Sequence[tuple[int, int]]) -> Iterator[Any]:
    position = 0
    for buffer, (start, length) in zip(buffers, spans, strict=True):
        if start > position:
            yield bytes(start - position)
        yield buffer
        position = start + length


def _of(url: str) -> tuple[ObjectStore, str]:
    base, _, name = url.rpartition("/")
    return _store(base), name


def _store(base: str) -> ObjectStore:
    global _user
    if _user not in (0, os.getpid()):
        raise Unavailable(
            "This process is a fork of one that has used the object store, which a fork cannot go on to use.",
            "Start processes with the method 'spawn' or 'forkserver'.",
        )
    _user = os.getpid()
    return _made(base)


@functools.lru_cache(64)
def _made(base: str) -> ObjectStore:
    _obstore()
    from datetime import timedelta

    from obstore.store import from_url

    options: dict[str, Any] = {"retry_config": {"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=_RETRY_S)}}
    if os.environ.get("AWS_ENDPOINT_URL", "").startswith("http:"):
        options["client_options"] = {"allow_http": True}
    try:
        return from_url(base, **({} if base.startswith("memory:") else options))
    except Exception as error:
        raise UsageError(f"{base} cannot be used: {_told(error)}.", "Write s3://bucket/prefix.") from None


def _obstore() -> Any:
    try:
        import obstore

        return obstore
    except ImportError:
        raise UsageError("An object store needs the package obstore.", "Run `pip install 'nubes[s3]'`.") from None


def _fail(what: str, url: str, error: Exception) -> NoReturn:
    raise Unavailable(
        f"The object store at {url} cannot be {what}: {_told(error)}.",
        "Check the bucket, and AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL.",
    ) from error


def _told(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
