"""Traces of LLM requests: what is read from each format, what is refused, and what generators promise."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nubes.kernel.errors import NotFound, NubesError, UsageError
from nubes.workloads.draws import generator
from nubes.workloads.llm import LLMWorkload, load_llm
from nubes.workloads.llm_synthetic import arrivals
from nubes.workloads.loading import VARIABLE

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2224670,879,55
"""
VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n0.5,10,3\n1.5,20,4\n1.5,30,5\n"
PAIRS = "TIMESTAMP,ContextTokens,GeneratedTokens\nXXX,42,285\nXXX,19,82\nXXX,3000,9\nXXX,7,1\n"
LENGTHS = "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n3772,54,3826,69.8\n2015,156,2171,12.9\n"
MOONCAKE = [
    {"timestamp": 0, "input_length": 1000, "output_length": 5, "hash_ids": [0, 1]},
    {"timestamp": 3000, "input_length": 1500, "output_length": 6, "hash_ids": [0, 1, 2]},
]

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return to


def lines(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_azure(write: Write) -> None:
    w = load_llm(write("conv.csv", AZURE))
    assert w.arrival_s == pytest.approx([0.0, 4.314579, 4.541877], abs=2e-6)
    assert w.prompt.tolist() == [374, 396, 879]
    assert w.output.tolist() == [44, 109, 55]
    assert w.seconds == pytest.approx(4.541877, abs=2e-6)
    assert "3 requests" in w.source


def test_vidur(write: Write) -> None:
    w = load_llm(write("poisson.csv", VIDUR))
    assert w.arrival_s.tolist() == [0.5, 1.5, 1.5]
    assert w.prompt.tolist() == [10, 20, 30]
    assert w.session is None
    assert w.blocks is None


def test_mooncake(write: Write) -> None:
    w = load_llm(write("conversation.jsonl", lines(MOONCAKE)))
    assert w.arrival_s.tolist() == [0.0, 3.0]
    assert w.blocks == ((0, 1), (0, 1, 2))
    assert w.block_tokens == 512
    assert load_llm(write("conversation.jsonl", lines(MOONCAKE)), limit=1100).blocks == ((0, 1),)


def test_lengths_get_arrivals(write: Write) -> None:
    path = write("lengths.csv", PAIRS)
    w = load_llm(path, seed=3, rate=2.0, limit=2048)
    assert sorted(zip(w.prompt.tolist(), w.output.tolist(), strict=True)) == [(7, 1), (19, 82), (42, 285)]
    assert "1 with more than 2,048 tokens dropped" in w.source
    assert (np.diff(w.arrival_s) > 0).all()
    again, other = load_llm(path, seed=3, rate=2.0, limit=2048), load_llm(path, seed=4, rate=2.0, limit=2048)
    assert again.arrival_s.tolist() == w.arrival_s.tolist()
    assert other.arrival_s.tolist() != w.arrival_s.tolist()
    assert load_llm(write("arxiv.csv", LENGTHS), n=1).requests == 1


def test_names_and_their_arguments(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("sharegpt/lengths.csv", PAIRS)
    write("azure/conv.csv", AZURE)
    write("azure/code.csv", AZURE)
    write("empty/readme.txt", "nothing")
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    w = load_llm("sharegpt(rate=4, limit=2048, cv=2)", seed=1)
    assert (w.name, w.requests) == ("sharegpt", 3)
    assert "Gamma gaps (cv 2) at 4 a second" in w.source
    assert load_llm("azure/conv.csv").requests == 3
    with pytest.raises(UsageError, match=r"2 traces: code.csv, conv.csv"):
        load_llm("azure")
    with pytest.raises(UsageError, match="0 traces"):
        load_llm("empty")
    with pytest.raises(UsageError, match="It takes: seed, rate, cv, limit, n"):
        load_llm("sharegpt(speed=4)")
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(NotFound, match="chat-like, code-like, long-context-like, agents-like, conversations"):
        load_llm("sharegpt")
    with pytest.raises(NotFound):
        load_llm("conversations")


def row(**changes: object) -> str:
    return lines([MOONCAKE[0], {key: value for key, value in {**MOONCAKE[1], **changes}.items() if value != "gone"}])


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "", "line 1: it has no header"),
        ("a.csv", "x,y\n1,2\n", "line 1: it has columns x, y"),
        ("a.csv", VIDUR.splitlines()[0] + "\n", "holds no requests"),
        ("a.csv", VIDUR + "2.0,-5,3\n", "line 5: num_prefill_tokens is -5"),
        ("a.csv", VIDUR + "2.0,5,0\n", "line 5: num_decode_tokens is 0"),
        ("a.csv", VIDUR + "2.0,5,x\n", "line 5: num_decode_tokens is 'x'"),
        ("a.csv", VIDUR + "2.0,5\n", "line 5: 2 values for 3 columns"),
        ("a.csv", VIDUR + "1.0,5,3\n", "line 5: it arrived before the request above it"),
        ("a.csv", VIDUR + "nan,5,3\n", "line 5: arrived_at is nan"),
        ("a.csv", AZURE + "yesterday,5,3\n", "line 5: TIMESTAMP is 'yesterday'"),
        ("a.csv", AZURE + "2023-11-15 18:15:46,5,3\n", "line 5: it arrived before"),
        ("a.jsonl", "", "holds no requests"),
        ("a.jsonl", "{\n", "line 1: no JSON"),
        ("a.jsonl", "3\n", "line 1: no JSON object"),
        ("a.jsonl", row(input_length="gone"), "line 2: input_length is missing"),
        ("a.jsonl", row(timestamp="gone"), "line 2: timestamp is missing"),
        ("a.jsonl", row(output_length=-1), "line 2: output_length is -1"),
        ("a.jsonl", row(hash_ids="ab"), "line 2: hash_ids is no list"),
        ("a.jsonl", row(timestamp=-1), "line 2: it arrived before"),
    ],
)
def test_bad_files_are_refused_by_line(write: Write, name: str, text: str, says: str) -> None:
    path = write(name, text)
    with pytest.raises(UsageError) as caught:
        load_llm(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


def test_bad_options_are_refused(write: Write) -> None:
    timed, lengths = write("a.csv", VIDUR), write("b.csv", PAIRS)
    for path, options, says in (
        (timed, {"cv": 2}, "arrivals of its own"),
        (timed, {"rate": 0}, "is no rate"),
        (timed, {"limit": 3}, "at most 3 tokens"),
        (lengths, {"rate": -1}, "is no rate"),
        (lengths, {"cv": -1}, "coefficient of variation"),
        (lengths, {"n": 0}, "are none"),
    ):
        with pytest.raises(UsageError, match=says):
            load_llm(path, **options)
    for text in (
        "chat-like(turns=0.5)",
        "chat-like(length=0s)",
        "chat-like(rate=0)",
        "chat-like(think=soon)",
        "chat-like(x=1)",
    ):
        with pytest.raises(NubesError):
            load_llm(text)


def workload(n: int = 100, sessions: int | None = None) -> LLMWorkload:
    draw = np.random.default_rng(0)
    return LLMWorkload(
        "w", "made for this test", np.sort(draw.random(n) * 50.0), np.arange(1, n + 1), np.arange(n, 0, -1), 50.0,
        session=None if sessions is None else draw.integers(0, sessions, n), priority=np.arange(n) % 3,
        blocks=tuple((i,) for i in range(n)), block_tokens=16,
    )  # fmt: skip


def test_until_scaled_thinned() -> None:
    w = workload()
    early = w.until(10.0)
    assert early.requests == (w.arrival_s < 10).sum()
    assert early.seconds == 10.0
    assert early.blocks == w.blocks[: early.requests]  # type: ignore[index]
    fast = w.scaled(8.0)
    assert fast.rate == pytest.approx(8.0)
    assert fast.arrival_s == pytest.approx(w.arrival_s / 4)
    few = w.thinned(10)
    assert few.prompt.tolist() == list(range(1, 101, 10))
    assert few.priority is not None
    assert few.priority.tolist() == [i % 3 for i in range(0, 100, 10)]
    assert w.thinned(1000) is w
    for call in (lambda: w.thinned(0), lambda: w.scaled(0), lambda: w.until(0)):
        with pytest.raises(UsageError):
            call()


def test_sessions_stay_whole_and_keep_their_pauses() -> None:
    w = workload(200, sessions=40)
    assert w.session is not None
    few = w.thinned(100)
    assert few.session is not None
    assert 70 <= few.requests <= 130
    for session in np.unique(few.session):
        assert (few.session == session).sum() == (w.session == session).sum()
    slow = w.scaled(w.rate / 2)
    assert slow.session is not None
    for session in range(40):
        was, now = w.arrival_s[w.session == session], slow.arrival_s[slow.session == session]
        assert np.diff(now) == pytest.approx(np.diff(was))
        assert now[0] == pytest.approx(2 * was[0])
        assert slow.prompt[slow.session == session].tolist() == w.prompt[w.session == session].tolist()


def test_columns_are_checked() -> None:
    good = {"arrival_s": np.array([0.0, 1.0]), "prompt": np.array([1, 2]), "output": np.array([1, 2]), "seconds": 1.0}
    LLMWorkload("w", "s", **good)  # type: ignore[arg-type]
    for bad, says in (
        ({"prompt": np.array([1])}, "differ in length"),
        ({"blocks": ((1,),)}, "differ in length"),
        ({"arrival_s": np.array([1.0, 0.0])}, "out of order"),
        ({"output": np.array([1, 0])}, "lacks tokens"),
    ):
        with pytest.raises(UsageError, match=says):
            LLMWorkload("w", "s", **{**good, **bad})  # type: ignore[arg-type]


@pytest.mark.parametrize("cv", [0.0, 0.5, 1.0, 4.0])
def test_arrivals_have_the_rate_and_burstiness_asked_for(cv: float) -> None:
    gaps = np.diff(arrivals(generator(0, "test"), 5.0, 200_000, cv), prepend=0.0)
    assert gaps.mean() == pytest.approx(0.2, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "prompt", "output", "turns"),
    [
        ("chat-like", 1154.7, 211.1, 3.5),
        ("code-like", 2047.8, 27.9, 1.0),
        ("long-context-like", 12_035, 343, 1.58),
        ("agents-like", 8596, 182, 8.0),
    ],
)
def test_generators_meet_the_published_means(text: str, prompt: float, output: float, turns: float) -> None:
    w = load_llm(f"{text}(rate=4,length=4h)", seed=5)
    assert w.prompt.mean() == pytest.approx(prompt, rel=0.08)
    assert w.output.mean() == pytest.approx(output, rel=0.03)
    assert w.rate == pytest.approx(4.0, rel=0.05)
    assert (w.arrival_s < w.seconds / 4).mean() == pytest.approx(0.25, abs=0.02)  # as busy at the start as later
    if turns > 1:
        assert w.requests / len(np.unique(w.session)) == pytest.approx(turns, rel=0.1)
    else:
        assert w.session is None


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(1.0, 8.0), st.sampled_from(["0s", "5s", "60s"]), st.integers(500, 20_000))
def test_a_turn_holds_its_history(seed: int, turns: float, think: str, limit: int) -> None:
    w = load_llm(f"chat-like(rate=2,length=120s,turns={turns},think={think},limit={limit})", seed=seed)
    assert (w.prompt + w.output).max() <= limit
    assert w.arrival_s.min() >= 0
    assert w.arrival_s.max() < 120
    if w.session is None:
        return
    assert w.think_s is not None
    last: dict[int, int] = {}
    for i, session in enumerate(w.session.tolist()):
        if session in last:
            j = last[session]
            assert w.prompt[i] > w.prompt[j] + w.output[j]
            assert w.arrival_s[i] - w.arrival_s[j] == pytest.approx(0.03 * w.output[j] + w.think_s[i])
        else:
            assert w.think_s[i] == 0.0
        last[session] = i


def test_blocks_of_a_session() -> None:
    w = load_llm("chat-like(rate=2,length=120s)", seed=2).with_blocks(16)
    assert w.blocks is not None
    assert w.session is not None
    whose: dict[int, int] = {}
    longest: dict[int, tuple[int, ...]] = {}
    for session, blocks, prompt in zip(w.session.tolist(), w.blocks, w.prompt.tolist(), strict=True):
        assert len(blocks) == -(-prompt // 16)
        before = longest.get(session, ())
        assert blocks[: len(before)] == before
        longest[session] = blocks
        assert all(whose.setdefault(block, session) == session for block in blocks)
    alone = load_llm("code-like(rate=2,length=60s)").with_blocks(64)
    assert alone.blocks is not None
    assert len({block for blocks in alone.blocks for block in blocks}) == sum(map(len, alone.blocks))
    with pytest.raises(UsageError):
        w.with_blocks(0)


def test_conversations_of_pairs(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "".join(f"XXX,{n % 50 + 1},{n % 30 + 1}\n" for n in range(1000))
    write("sharegpt/lengths.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n" + body)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    w = load_llm("conversations(rate=4,length=2h)", seed=1)
    assert w.output.max() <= 30
    assert w.requests / len(np.unique(w.session)) == pytest.approx(5.5, rel=0.1)
    assert w.think_s is not None
    assert w.think_s[w.think_s > 0].mean() == pytest.approx(60.0, rel=0.05)
    assert w.rate == pytest.approx(4.0, rel=0.05)


@pytest.mark.parametrize(
    ("name", "requests", "prompt", "output", "medians"),
    [
        ("azure-llm-2023/conv.csv", 19_366, 1154.7, 211.1, (1020, 129)),
        ("mooncake/conversation.jsonl", 12_031, 12_035, 343, None),
        ("sharegpt/lengths.csv", 58_787, 298.8, 323.7, (36, 280)),
        ("lmsys/lengths.csv", 100_000, 92.2, 207.4, (28, 140)),
        ("arxiv-summarization/lengths.csv", 28_257, None, None, (2730, 167)),
        ("vidur/poisson_6.45qps_2000.csv", 2000, 2.33e6 / 2000, 0.43e6 / 2000, None),
    ],
)
def test_published_traces(
    name: str, requests: int, prompt: float | None, output: float | None, medians: tuple[int, int] | None
) -> None:
    if not Path(os.environ.get(VARIABLE, "/nowhere"), name).is_file():
        pytest.skip(f"{VARIABLE} names no folder with {name}")
    w = load_llm(name)
    assert w.requests == requests
    if prompt is not None and output is not None:
        assert w.prompt.mean() == pytest.approx(prompt, rel=0.01)
        assert w.output.mean() == pytest.approx(output, rel=0.015 if "vidur" in name else 0.01)
    if medians is not None:
        assert (np.median(w.prompt), np.median(w.output)) == medians


def test_mooncakes_reuse() -> None:
    """36.6 % of its blocks are prefixes that were seen before."""
    if not Path(os.environ.get(VARIABLE, "/nowhere"), "mooncake/conversation.jsonl").is_file():
        pytest.skip(f"{VARIABLE} names no folder with mooncake")
    w = load_llm("mooncake")
    assert w.blocks is not None
    seen: set[int] = set()
    reused = 0
    for blocks in w.blocks:
        reused += next((i for i, block in enumerate(blocks) if block not in seen), len(blocks))
        seen.update(blocks)
    assert reused / sum(map(len, w.blocks)) == pytest.approx(0.366, abs=0.001)
