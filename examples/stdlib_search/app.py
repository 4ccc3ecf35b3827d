"""A search engine over Python's own standard library: parse in a map, index in a shuffle, answer over HTTP.

`demo.py` beside this file runs it all on a cloud of its own. To keep it running on yours:

    nubes up --detach
    nubes deploy examples/stdlib_search/app.py
    nubes run examples/stdlib_search/app.py --query "parse json"    # builds the index, then asks it
"""

from __future__ import annotations

import ast
import json
import re
import sysconfig
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import chain
from math import log
from pathlib import Path
from typing import Any, NamedTuple

import nubes

STDLIB = Path(sysconfig.get_path("stdlib"))
PARTITIONS = 8
BATCH = 100  # parsed files that one mapper of the shuffle takes

app = nubes.App("stdlib")
index = nubes.Volume.from_name("stdlib-index", create_if_missing=True)


class Definition(NamedTuple):
    """A function or class of the standard library."""

    name: str  # json.decoder.JSONDecoder.decode
    line: int
    about: str  # the first line of its docstring
    words: dict[str, int]  # what it can be found by, and how much it says of it


def sources() -> list[str]:
    """The standard library's source files, without what was installed beside it."""
    return sorted(str(path) for path in STDLIB.rglob("*.py") if not {"site-packages", "dist-packages"} & {*path.parts})


def words_of(text: str) -> Iterator[str]:
    """`parse_HTTPHeader` -> parse, http, header."""
    return (word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", text))


def partition_of(word: str) -> int:
    return zlib.crc32(word.encode()) % PARTITIONS  # the same in every process, which hash() is not


# -- map: a file in, its definitions out -----------------------------------------------------------------------------


@app.function()
def parse(file: str) -> list[Definition]:
    """Every function and class of one file. The files that are broken on purpose, for tests, hold none."""
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(Path(file).read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return []
    module = Path(file).relative_to(STDLIB).with_suffix("")
    return list(definitions(tree, ".".join(part for part in module.parts if part != "__init__")))


def definitions(node: ast.AST, scope: str) -> Iterator[Definition]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{scope}.{child.name}"
            doc = ast.get_docstring(child) or ""
            words = Counter(words_of(doc))
            words.update(dict.fromkeys(words_of(child.name), 10))  # a name says more than a docstring
            words.update(dict.fromkeys(words_of(scope), 5))
            yield Definition(name, child.lineno, doc.partition("\n")[0], dict(words))
            yield from definitions(child, name)


# -- shuffle: every word goes to the one partition that is its own ---------------------------------------------------


@app.function()
def scatter(batch: int, parsed: list[list[Definition]]) -> None:
    """Writes, for each partition, which of its words stand for which definitions."""
    parts: list[defaultdict[str, dict[str, int]]] = [defaultdict(dict) for _ in range(PARTITIONS)]
    for definition in chain.from_iterable(parsed):
        for word, weight in definition.words.items():
            parts[partition_of(word)][word][definition.name] = weight
    for number, part in enumerate(parts):
        (index.path / f"part-{number}-of-batch-{batch}.json").write_text(json.dumps(part))
    about = {d.name: (d.line, d.about) for d in chain.from_iterable(parsed)}
    (index.path / f"definitions-{batch}.json").write_text(json.dumps(about))


@app.function(memory="256MiB")
def reduce(number: int) -> int:
    """Brings together what all mappers wrote for one partition; returns how many words are in it."""
    words: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for path in index.path.glob(f"part-{number}-of-batch-*.json"):
        for word, weights in json.loads(path.read_text()).items():
            words[word] |= weights
        path.unlink()
    (index.path / f"index-{number}.json").write_text(json.dumps(words))
    return len(words)


# -- serve: a class whose instances load the index, each partition when it is first asked for ------------------------


@app.cls(memory="256MiB")
class Search:
    @nubes.enter()
    def set_up(self) -> None:
        self.partitions: dict[int, dict[str, dict[str, int]]] = {}
        self.about: dict[str, tuple[int, str]] = {}
        for path in index.path.glob("definitions-*.json"):
            self.about |= json.loads(path.read_text())

    @nubes.fastapi_endpoint()
    def search(self, q: str, limit: int = 5) -> list[dict[str, Any]]:
        """The definitions that fit best: those that say most of the rarest words."""
        scores: defaultdict[str, float] = defaultdict(float)
        for word in set(words_of(q)):
            weights = self.weights(word)
            for name, weight in weights.items():
                tests = 0.5 if "test" in name else 1.0
                scores[name] += tests * log(1 + weight) * log(1 + len(self.about) / len(weights))
        best = sorted(scores, key=lambda name: (-scores[name], len(name), name))[:limit]
        return [{"name": name, "line": self.about[name][0], "about": self.about[name][1]} for name in best]

    def weights(self, word: str) -> dict[str, int]:
        number = partition_of(word)
        if number not in self.partitions:
            self.partitions[number] = json.loads((index.path / f"index-{number}.json").read_text())
        return self.partitions[number].get(word, {})


# -- all of it -------------------------------------------------------------------------------------------------------


def build(files: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Builds the index, and tells what is done as it is done: a file (and its definitions), a batch, a partition."""
    parsed = []
    for found in parse.map(files, order_outputs=False):
        parsed.append(found)
        yield "parse", len(found)
    batches = [parsed[start : start + BATCH] for start in range(0, len(parsed), BATCH)]
    for _ in scatter.starmap(enumerate(batches), order_outputs=False):
        yield "scatter", 1
    for words in reduce.map(range(PARTITIONS), order_outputs=False):
        yield "reduce", words


@app.local_entrypoint()
def main(query: str = "parse json") -> None:
    for _ in build(sources()):
        pass
    for found in Search().search.remote(query):
        print(f"{found['name']}, line {found['line']}: {found['about']}")
