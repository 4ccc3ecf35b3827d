"""Replays of several configurations, and how they are shown."""

from __future__ import annotations

import json
import re
from functools import partial
from html.parser import HTMLParser

import msgspec
import pytest

from nubes.kernel.errors import UnknownPolicy, UsageError
from nubes.replay import Configuration, Report, configurations, html, ranking, replay, table
from nubes.replay.terminal import COLUMNS, cells
from nubes.workloads import load

from .small import random_workload


@pytest.fixture(scope="module")
def report() -> Report:
    return replay(random_workload(2), configurations(["fixed-window(keep=2s)", "cidre", "no-unload"]), jobs=1)


def _without_speed(report: Report) -> Report:
    return msgspec.structs.replace(report, rows=[msgspec.structs.replace(r, events_per_s=0.0) for r in report.rows])


def test_processes_side_by_side_give_what_one_gives(report: Report) -> None:
    told: list[float] = []
    texts = ["fixed-window(keep=2s)", "cidre", "no-unload"]
    parallel = replay(random_workload(2), configurations(texts), jobs=2, progress=lambda share, _: told.append(share))
    assert _without_speed(parallel) == _without_speed(report)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1.0)


def test_seeds_give_medians_and_ranges() -> None:
    make = partial(load, "poisson(functions=3,length=2m)")
    several = replay(make, [Configuration("no-unload")], seeds=(0, 1, 2), jobs=1)  # type: ignore[arg-type]
    single = [replay(make, [Configuration("no-unload")], seeds=(s,), jobs=1).rows[0].measures for s in (0, 1, 2)]  # type: ignore[arg-type]
    waits = sorted(m.mean_wait_s for m in single)
    assert several.rows[0].measures.mean_wait_s == waits[1]
    costs = [m.dollars for m in single]
    assert several.rows[0].range["dollars"] == (min(costs), max(costs))


def test_overlapping_ranges_are_not_ranked(report: Report) -> None:
    wide = [msgspec.structs.replace(row, range=dict.fromkeys(row.range, (0.0, 1e9))) for row in report.rows]
    assert len(ranking(msgspec.structs.replace(report, rows=wide), "dollars")) == 1
    assert ranking(report, "dollars")[0] == ["fixed-window(keep=2s)"]


def test_labels_tell_apart_what_differs() -> None:
    several = configurations(["lru"], ["fifo", "edf"])
    assert [c.label(several) for c in several] == ["fifo", "edf"]
    limited = [Configuration("lru", memory_bytes=2**30), Configuration("lru")]
    assert [c.label(limited) for c in limited] == ["1 GiB", "unlimited memory"]


def test_balancing_and_hedging_are_compared_on_a_workload_that_names_none() -> None:
    made = load("bursty(functions=2,length=10m)")
    report = replay(made, configurations(["no-unload"], balancing=["latest", "round-robin"]), jobs=1)  # type: ignore[arg-type]
    assert [row.label for row in report.rows] == ["latest", "round-robin"]
    both = configurations(["no-unload"], hedging=["none", "tail-at-scale(delay=1s,budget=1)"])
    plain, hedged = replay(made, both, jobs=1).rows  # type: ignore[arg-type]
    assert [plain.label, hedged.label] == ["none", "tail-at-scale(delay=1s,budget=1)"]
    assert plain.measures != hedged.measures
    with pytest.raises(UnknownPolicy, match="round-robin"):
        configurations(balancing=["round-robbin"])


def test_wrong_names_and_nothing_to_do_are_said_at_once() -> None:
    with pytest.raises(UnknownPolicy, match="fixed-window"):
        configurations(["fixd-window"])
    with pytest.raises(UsageError, match="nothing to compare"):
        replay(random_workload(1), [])
    with pytest.raises(UsageError, match="named twice"):
        replay(random_workload(1), [Configuration("lru"), Configuration("lru")])


def test_json_is_json(report: Report) -> None:
    built = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert [row["label"] for row in built["rows"]] == [row.label for row in report.rows]
    assert built["rows"][0]["configuration"]["memory_bytes"] is None
    assert {label for place in built["ranking"]["p95"] for label in place} == {row.label for row in report.rows}


def test_the_terminal_shows_every_policy(report: Report) -> None:
    from rich.console import Console

    console = Console(width=100, record=True, file=open("/dev/null", "w"))
    console.print(table(report))
    text = console.export_text()
    for row in report.rows:
        assert row.label in text
        assert f"{row.measures.cold_share:.2%}" in text


@pytest.mark.parametrize("largest", [False, True])
def test_the_terminal_cuts_nothing_at_80_columns(report: Report, largest: bool) -> None:
    from rich.console import Console

    rows = report.rows
    if largest:
        most = {
            "cold_share": 1.0,
            "latency_s": msgspec.structs.replace(rows[0].measures.latency_s, p50=7000.0, p95=7000.0, p99=7000.0),
        }
        most |= {"wasted_gib_s": 123_456 * 3600.0, "dollars": 12_345.0, "starts": 123_456}
        rows = [msgspec.structs.replace(row, measures=msgspec.structs.replace(row.measures, **most)) for row in rows]
    rows = [*rows[:-1], msgspec.structs.replace(rows[-1], label="hybrid-histogram(range=1h,unit=function)")]
    console = Console(width=80, record=True, file=open("/dev/null", "w"))
    console.print(table(msgspec.structs.replace(report, rows=rows)))
    lines = console.export_text().splitlines()
    assert max(len(line) for line in lines) <= 80
    grid = lines[3 : lines.index(next(line for line in lines if line.startswith("wasted:")))]
    assert grid[0].split() == ["policy", *COLUMNS]
    for row in rows:
        (shown,) = [line for line in grid if line.startswith(row.label[:9])]
        assert shown.endswith("  ".join(cells(row)[-1:]))
        assert shown.split()[1:] == " ".join(cells(row)).split()


class _Page(HTMLParser):
    """Collects what a page refers to, and checks that its tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_alone_and_can_be_read_without_seeing_it(report: Report) -> None:
    hostile = msgspec.structs.replace(report, name="<script>alert(1)</script>")
    page = html(hostile)
    parsed = _Page()
    parsed.feed(page)
    assert parsed.open == []
    assert "<script>alert(1)" not in page
    assert not [a for _, a in parsed.tags if "src" in a or "href" in a]
    assert not re.search(r"url\(|@import", page)
    charts = [a for tag, a in parsed.tags if tag == "svg"]
    assert len(charts) == 4
    assert all(a["role"] == "img" and a["aria-labelledby"] for a in charts)
    lines = [a for tag, a in parsed.tags if tag == "path" and "data-series" in a]
    assert len(lines) == 3 * len(report.rows)
    assert html(hostile) == page
