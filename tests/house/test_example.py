"""The search engine of `make demo`, over a few files."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from documents import ROOT

from nubes import client


@pytest.fixture
def stdlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The example's module, on a control plane of its own."""
    monkeypatch.setenv("NUBES_DATA", str(tmp_path / "data"))
    client.disconnect()
    spec = importlib.util.spec_from_file_location("stdlib_search_app", ROOT / "examples" / "stdlib_search" / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    yield module
    client.disconnect()


def test_it_finds_what_was_parsed_and_shuffled(stdlib: ModuleType) -> None:
    files = [
        str(stdlib.STDLIB / name)
        for name in ("json/__init__.py", "json/decoder.py", "shlex.py", "bisect.py", "heapq.py")
    ]
    with stdlib.app.run():
        done = Counter(stage for stage, _ in stdlib.build(files))
        assert done == {"parse": len(files), "scatter": 1, "reduce": stdlib.PARTITIONS}
        search = stdlib.Search().search
        assert search.remote("split shell words", limit=1)[0]["name"] == "shlex.split"
        assert search.remote("JSON loads", limit=1)[0]["name"] == "json.loads"
        assert search.remote("quetzalcoatl") == []


def test_every_word_has_one_partition_and_broken_files_hold_nothing(stdlib: ModuleType, tmp_path: Path) -> None:
    assert list(stdlib.words_of("parse_HTTPHeader2 aB")) == ["parse", "http", "header", "2", "a", "b"]
    assert {stdlib.partition_of(word) for word in ("parse", "json")} <= set(range(stdlib.PARTITIONS))
    broken = tmp_path / "broken.py"
    broken.write_text("def f(:\n")
    assert stdlib.parse.local(str(broken)) == []
    own = stdlib.parse.local(str(stdlib.STDLIB / "bisect.py"))
    assert {"bisect.insort_right", "bisect.bisect_left"} <= {found.name for found in own}


def test_files_installed_beside_the_library_are_left_out(stdlib: ModuleType) -> None:
    files = stdlib.sources()
    assert len(files) > 500
    assert not any("site-packages" in file for file in files)
