"""Claims, results, the catalogue and its page."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from nubes import papers
from nubes.kernel.errors import NotFound, UsageError
from nubes.kernel.policy import Paper
from nubes.papers import registry
from nubes.papers.claims import Claim, above, at_least, at_most, below, between, judge, unmeasured
from nubes.papers.context import Context
from nubes.papers.page import page

TEN = {
    "catalyzer", "cidre", "huawei-cold-starts", "hybrid-histogram", "peeking-serverless",
    "pywren", "sand", "seuss", "sock", "xfaas",
}  # fmt: skip
KEYS = ["id", "claim", "metric", "baseline", "paper", "measured", "workload", "mode", "holds", "seconds"]
FASTER = Claim("It is faster.", "ours / theirs", "theirs", at_most(0.5), "0.4")


@pytest.mark.parametrize(
    ("criterion", "inside", "outside"),
    [
        (at_most(0.5), [0.5, -1.0], [0.51]),
        (at_least(10.0), [10.0, 99.0], [9.9]),
        (below(1.0), [0.99], [1.0, 2.0]),
        (above(0.5), [0.51], [0.5]),
        (between(72.0, 88.0), [72.0, 88.0], [71.9, 88.1]),
        (at_most(1.0), [], [float("nan"), float("inf")]),
    ],
)
def test_criteria(criterion: papers.Criterion, inside: list[float], outside: list[float]) -> None:
    assert all(criterion.holds(value) for value in inside)
    assert not any(criterion.holds(value) for value in outside)


def test_a_result_is_judged_on_the_median_and_shows_the_range() -> None:
    result = judge("x", FASTER, [0.9, 0.2, 0.4], "a workload", "live", 1.234)
    assert result.holds is True
    assert result.measured == papers.Measured(0.4, 0.2, 0.9)
    assert judge("x", FASTER, [0.9, 0.2, 0.6], "a workload", "live", 0.0).holds is False
    assert "at most 0.5" in result.metric
    assert "median" in result.metric


def test_the_noise_of_floating_point_decides_nothing() -> None:
    claim = Claim("It is close.", "points", "truth", at_most(5.0))
    assert abs(0.55 - 0.5) * 100 > 5.0
    assert judge("x", claim, [abs(0.55 - 0.5) * 100], "w", "live", 0.0).holds is True
    assert judge("x", claim, [5.0000001], "w", "live", 0.0).holds is False


def test_json_has_exactly_the_fixed_keys() -> None:
    built = msgspec.json.decode(msgspec.json.encode(judge("x", FASTER, [0.4], "w", "live", 0.0)))
    assert list(built) == KEYS
    assert list(built["measured"]) == ["median", "min", "max"]
    missing = msgspec.json.decode(msgspec.json.encode(unmeasured("x", FASTER, "no such hardware", "live")))
    assert list(missing) == KEYS
    assert missing["holds"] is None
    assert missing["measured"] == {"median": None, "min": None, "max": None}
    assert "no such hardware" in missing["workload"]


def test_the_ten_are_in_the_catalogue_and_their_modules_bear_their_names() -> None:
    entries = {entry.id: entry for entry in papers.catalogue()}
    assert set(entries) >= TEN | {"faascache"}
    for id in TEN:
        importlib.import_module(f"nubes.papers.{id.replace('-', '_')}")
        assert registry.find(id).paper.id == id
    assert entries["sand"].seam == "cold-start, keep-alive"
    assert entries["pywren"].area == "functions"
    assert list(msgspec.to_builtins(entries["seuss"])) == [
        "id",
        "name",
        "title",
        "venue",
        "area",
        "seam",
        "mode",
        "holds",
    ]


@pytest.mark.parametrize("id", sorted(TEN))
def test_claims_are_whole_and_told_apart(id: str) -> None:
    claims = registry.find(id).claims
    assert len({claim.text for claim in claims}) == len(claims)
    for claim in claims:
        assert claim.text.endswith(".")
        assert claim.metric
        assert claim.baseline
        assert claim.criterion.low > float("-inf") or claim.criterion.high < float("inf")


def test_an_unknown_id_gets_the_nearest() -> None:
    with pytest.raises(NotFound, match="seuss"):
        papers.reproduce("seus")


def test_scale_and_seeds_are_checked() -> None:
    with pytest.raises(UsageError, match="small"):
        papers.reproduce("seuss", scale="tiny")
    with pytest.raises(UsageError, match="seeds=0"):
        papers.reproduce("seuss", seeds=0)


def made_up(run: registry.Run, monkeypatch: pytest.MonkeyPatch) -> str:
    paper = Paper("made-up", "Made up", "A Made-up Paper", "Nowhere 2020")
    monkeypatch.setattr(registry, "_REPRODUCTIONS", dict(registry._REPRODUCTIONS))
    papers.reproduction(paper, claims=[FASTER], area="functions", seam="none", mode="simulated")(run)
    return paper.id


def test_a_run_yields_results_and_tells_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[float, str]] = []

    def run(ctx: Context) -> Iterator[papers.Result]:
        assert ctx.pick("small", "full") == "full"
        assert ctx.folder.is_dir()
        yield ctx.result(FASTER, [0.1 * (seed + 1) for seed in ctx.each("counting")], "numbers")

    id = made_up(run, monkeypatch)
    (result,) = papers.reproduce(id, seeds=3, scale="full", progress=lambda share, what: told.append((share, what)))
    assert (result.id, result.mode, result.holds) == ("made-up", "simulated", True)
    assert told == [(0.0, f"counting, seed {n} of 3") for n in (1, 2, 3)]


def test_every_declared_claim_is_told_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(ctx: Context) -> Iterator[papers.Result]:
        yield from ()

    def other(ctx: Context) -> Iterator[papers.Result]:
        yield ctx.result(Claim("It is slower.", "m", "b", at_most(1.0)), [0.0], "w")

    with pytest.raises(UsageError, match="It is faster"):
        papers.reproduce(made_up(silent, monkeypatch))
    with pytest.raises(UsageError, match="not declared"):
        papers.reproduce(made_up(other, monkeypatch))


def test_what_is_recorded_comes_back_and_decides_holds(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    assert papers.recorded(path) == {}
    good, bad = judge("a", FASTER, [0.4], "w", "live", 1.0), judge("b", FASTER, [0.6], "w", "live", 1.0)
    papers.record([good], path)
    papers.record([bad, unmeasured("b", FASTER, "why", "live")], path)
    kept = papers.recorded(path)
    assert kept["a"] == [good]
    assert [result.holds for result in kept["b"]] == [False, None]
    assert registry._all_hold(kept["a"]) is True
    assert registry._all_hold(kept["b"]) is False
    assert registry._all_hold([unmeasured("b", FASTER, "why", "live")]) is None


def test_the_page_shows_what_did_not_hold() -> None:
    entries = [e for e in papers.catalogue() if e.id in ("seuss", "sock")]
    results = {"seuss": [judge("seuss", FASTER, [0.4, 0.6, 0.9], "w", "live", 1.0)]}
    text = page(entries, results)
    assert "| sock |" in text
    failed = text.partition("## Claims that did not hold")[2].partition("\n## ")[0]
    assert "It is faster. Measured 0.6 (0.4 to 0.9)" in failed
    assert "**no**" in text


def test_the_page_in_the_docs_is_the_one_the_code_makes() -> None:
    written = Path(__file__).parents[2] / "docs" / "papers.md"
    assert written.read_text() == page(papers.catalogue(), papers.recorded()), "run `python -m nubes.papers.page`"
