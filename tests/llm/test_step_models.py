"""Step-time models: the figures they were given, their limits where one side of a step vanishes, and their errors."""

from __future__ import annotations

import csv
import os
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nubes.kernel.errors import UsageError
from nubes.llm.models import LLMS, Load, StepModel, fit, gpu_facts, kv_tokens, llm_facts, step_model
from nubes.llm.models.cpu import nonnegative
from nubes.llm.models.profiles import VARIABLE
from nubes.llm.models.vidur import forest

profiles = pytest.mark.skipif(
    not Path(os.environ.get(VARIABLE, "/nowhere"), "llm-step-profiles").is_dir(),
    reason=f"{VARIABLE} names no folder with llm-step-profiles",
)
SHIPPED = ("opt(opt-13b)", "opt(opt-13b,engine=vllm)", "lin(llama-3-8b)", "lin(llama-2-70b,gpu=h100,tp=8)")
PUBLISHED = (
    "opt(opt-66b,tp=8,pp=4)", "lin(llama-2-7b,gpu=a40,tp=2)", "tab(llama2-70b,gpu=h100,tp=8)", "tab(bloom-176b)", "vidur(llama-3-8b,gpu=a100)",
)  # fmt: skip


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def ms(model: StepModel, load: Load) -> float:
    return model.seconds(load) * 1e3


def test_a_load_sums_what_is_in_the_step() -> None:
    load = Load.of([(512, 0), (100, 300)], [10, 20])
    assert load == Load(2, 612, 512**2 + 100**2, 30_000, 300, 2, 30)
    assert load.rows == 614


@pytest.mark.usefixtures("bare")
def test_opt_is_distserves_formula() -> None:
    model = step_model("opt(opt-13b,tp=1)")
    assert ms(model, Load.of([(512, 0)])) == pytest.approx(18.10 + 0.1019 * 512 + 7.12e-6 * 512**2)
    assert ms(model, Load.of([(512, 0)])) == pytest.approx(72.1, abs=0.1)
    assert ms(model, Load.of([(100, 0), (200, 0)])) == pytest.approx(18.10 + 0.1019 * 300 + 7.12e-6 * 50_000)
    assert ms(model, Load.of([], [1000] * 94)) == pytest.approx(19.93 + 6.27e-4 * 94_000 + 0.0385 * 94)
    assert ms(model, Load.of([], [1000] * 95)) == pytest.approx(7.17 + 5.80e-4 * 95_000 + 0.158 * 95)
    assert model.kv_tokens == 66_144


@pytest.mark.usefixtures("bare")
def test_chunks_of_a_prompt_take_its_attention_once() -> None:
    model = step_model("opt(opt-13b)")
    whole = ms(model, Load.of([(1024, 0)]))
    chunked = ms(model, Load.of([(512, 0)])) + ms(model, Load.of([(512, 512)]))
    assert chunked - whole == pytest.approx(18.10)  # the constant, a second time


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("decodes", [1, 50, 94, 95, 200])
def test_a_mixed_step_meets_both_formulas(decodes: int) -> None:
    model = step_model("opt(opt-13b)")
    alone = ms(model, Load.of([], [500] * decodes))
    assert alone <= ms(model, Load.of([(1, 0)], [500] * decodes)) <= max(alone, 18.10 + 6.27e-4 * 500 * decodes) + 0.2
    apart = alone + ms(model, Load.of([(512, 0)]))
    assert ms(model, Load.of([(512, 0)], [500] * decodes)) < apart


@pytest.mark.usefixtures("bare")
def test_lin_without_files_gives_the_shipped_sums() -> None:
    model = step_model("lin(llama-3-8b,gpu=a100,overhead_ms=2)")
    pairs = 4 * 4096 * 32 * 0.5 * (512**2 + 512) / (0.4 * 312e12) * 1e3
    assert ms(model, Load.of([(512, 0)])) == pytest.approx(34.9 + 2 + pairs)
    kv = 32 * 1000 * 131_072 / (0.8 * 2039e9) * 1e3
    assert ms(model, Load.of([], [1000] * 32)) == pytest.approx(9.8 + (13.3 - 9.8) * 31 / 127 + 2 + kv)
    half = step_model("lin(llama-3-8b,gpu=a100,pp=2)")
    assert (half.stages, half.devices) == (2, 2)
    assert ms(half, Load.of([(512, 0)])) == pytest.approx((34.9 + pairs) / 2)


@pytest.mark.usefixtures("bare")
def test_tensor_parallel_steps_pay_for_their_all_reduce() -> None:
    model = step_model("lin(llama-2-70b,gpu=a100,tp=8)")
    ring = 2 * 80 * (30e-6 + 512 * 2 * 8192 * 2 * 7 / 8 / (0.58 * 300e9)) * 1e3
    assert ms(model, Load(decodes=512)) == pytest.approx(52.8 + ring)


@profiles
def test_files_agree_with_the_shipped_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("lin(llama-2-7b,gpu=a100)", "lin(llama-3-8b,gpu=a100)", "lin(llama-2-7b,gpu=h100)", "opt(opt-13b)"):
        measured = step_model(text)
        with monkeypatch.context() as without:
            without.delenv(VARIABLE)
            shipped = step_model(text)
        for rows in (1, 128, 256, 512, 1024, 2048, 4096):
            load = Load.of([(rows, 0)])
            assert measured.seconds(load) == pytest.approx(shipped.seconds(load), rel=0.015)
        assert measured.kv_tokens == shipped.kv_tokens


@profiles
def test_distserves_files() -> None:
    model = step_model("opt(opt-66b,tp=4,pp=1)")
    assert model.kv_tokens == 78_496
    assert ms(model, Load.of([(1000, 0)])) == pytest.approx(29.441636 + 151.352180 + 8.317451, abs=1e-4)
    staged = step_model("opt(opt-66b,tp=4,pp=2)")
    assert (staged.stages, staged.devices, staged.kv_tokens) == (2, 8, 212_320)
    assert staged.seconds(Load.of([(1000, 0)])) == pytest.approx(model.seconds(Load.of([(1000, 0)])) / 2)


@profiles
def test_splitwises_table() -> None:
    """2,048 rows were measured as one prompt and as four of 512, some 6 % apart: the middle of both counts."""
    for gpu, one, four, token in (("a100", 274.2, 292.3, 45.4), ("h100", 136.8, 132.6, 31.0)):
        model = step_model(f"tab(llama2-70b,gpu={gpu},tp=8)")
        prompt = ms(model, Load.of([(2048, 0)]))
        assert min(one, four) - 1 < prompt < max(one, four) + 1
        assert ms(model, Load.of([], [2048])) == pytest.approx(token, rel=0.03)
        assert ms(model, Load.of([(2047, 0)], [100])) == pytest.approx(1.1 * prompt)


@profiles
def test_vidurs_step_by_hand() -> None:
    """Two decodes of 1,000 and a chunk of 300 after 100: as its formulas say, on a row count that was measured."""
    model = step_model("vidur(llama-3-8b,gpu=a100)")
    assert model.kv_tokens == 118 * 4096
    bandwidth, flops = 0.8 * 2039e9, 0.6 * 312e12
    rows = 302
    kv = 2 * 2 * 8 * 128  # of one token in one layer
    path = Path(os.environ[VARIABLE], "llm-step-profiles/vidur/a100/llama-3-8b/mlp.csv")
    with path.open() as file:
        table = [row for row in csv.DictReader(file) if row["num_tensor_parallel_workers"] == "1"]
    (row,) = (row for row in table if row["num_tokens"] == "304")
    linear = sum(float(v) for k, v in row.items() if k.endswith(".median") and ".emb." not in k) / 1e3
    save = 4e-6 + rows * kv / bandwidth
    decode = 1.1 * (10e-6 + 2 * 1024 * kv / bandwidth)
    prefill = 10e-6 + 4 * 4096 * 384 * (128 + 192) / flops
    expected = 32 * (linear + save + decode + prefill)
    assert model.seconds(Load.of([(300, 100)], [1000, 1000])) == pytest.approx(expected, rel=0.01)
    one = model.seconds(Load.of([], [1000]))
    assert model.seconds(Load.of([], [961])) == one  # contexts are rounded up to 64
    assert one < model.seconds(Load.of([], [1025]))


def test_a_forest_in_expectation() -> None:
    """Against bootstraps drawn at random, each answering with the nearest point it holds."""
    draw = np.random.default_rng(0)
    x = np.concatenate([[1, 2, 4], np.arange(8, 480, 8)])
    y = 1.0 + draw.random(len(x))
    said, trees = np.zeros(len(x)), 4_000
    for _ in range(trees):
        held = np.unique(draw.integers(0, len(x), len(x)))
        gap = 2 * np.abs(x[held][None, :] - x[:, None]) + (x[held][None, :] > x[:, None])
        said += y[held[gap.argmin(axis=1)]]
    np.testing.assert_allclose(forest(x, y, len(x)), said / trees, rtol=0.02)
    flat = np.full(len(x), 3.0)
    np.testing.assert_allclose(forest(x, flat, len(x)), flat)


def every() -> list[str]:
    there = Path(os.environ.get(VARIABLE, "/nowhere"), "llm-step-profiles").is_dir()
    return [*SHIPPED, *(PUBLISHED if there else ())]


@pytest.mark.parametrize("text", every())
def test_more_work_takes_longer(text: str) -> None:
    model = step_model(text)

    def took(*loads: Load) -> list[float]:
        return [model.seconds(load) for load in loads]

    for series in (
        took(*(Load.of([(rows, 0)]) for rows in (512, 1024, 4096, 20_000, 100_000))),
        took(*(Load.of([(512, context)]) for context in (0, 8192, 65_536))),
        took(*(Load.of([], [600] * n) for n in (1, 16, 64, 128, 400, 2000))),
        took(*(Load.of([], [context] * 32) for context in (600, 4096, 32_768))),
        took(Load.of([], [600] * 32), Load.of([(512, 0)], [600] * 32), Load.of([(2048, 0)], [600] * 32)),
    ):
        assert all(b > a > 0 for a, b in pairwise(series))
    assert model.kv_tokens > 0
    assert model.kv_bytes > 0
    assert model.weight_bytes > 0
    assert isinstance(model.seconds(Load()), float)
    assert model.name in model.describe()


LOADS = st.builds(
    Load.of,
    st.lists(st.tuples(st.integers(1, 512), st.integers(0, 2048)), max_size=4),
    st.lists(st.integers(1, 2048), max_size=32),
).filter(lambda load: load.rows > 0)


@settings(max_examples=25, deadline=None)
@given(st.lists(LOADS, min_size=40, max_size=60), st.lists(st.floats(0.01, 1.0), min_size=5, max_size=5))
def test_a_fit_finds_the_times_it_was_given(loads: list[Load], size: list[float]) -> None:
    a, b, c, d, e = (of * unit for of, unit in zip(size, (1e-2, 1e-3, 1e-7, 1e-6, 1e-4), strict=True))

    def true(at: Load) -> float:
        pairs = at.prefill_squares + 2 * at.prefill_pairs
        return a + b * at.rows + c * pairs + d * at.decode_context + e * (at.prefills + at.decodes)

    model = fit([(load, true(load)) for load in loads], kv_tokens=1000)
    assert model.error < 1e-6
    assert all(model.seconds(load) == pytest.approx(true(load), rel=1e-4) for load in loads)


def test_a_fit_is_saved_and_read(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    log = []
    for _ in range(200):
        load = Load.of([(int(draw.integers(1, 256)), 0)], draw.integers(1, 900, int(draw.integers(0, 16))).tolist())
        log.append((load, (0.004 + 2e-4 * load.rows) * draw.lognormal(0, 0.05)))
    model = fit(log, "smol", kv_tokens=4096, kv_bytes=23_040, weight_bytes=270_000_000)
    assert 0.01 < model.error < 0.06
    assert all(value >= 0 for value in model.coefficients)
    model.save(tmp_path / "steps.json")
    assert step_model(f"cpu({tmp_path / 'steps.json'})") == model


def test_a_bad_fit_is_refused(tmp_path: Path) -> None:
    draw = np.random.default_rng(2)
    noise = [(Load.of([(64, 0)], [10] * 4), float(draw.lognormal(0, 1.0))) for _ in range(50)]
    with pytest.raises(UsageError, match="misses half of its own steps"):
        fit(noise, kv_tokens=10)
    with pytest.raises(UsageError, match="too few"):
        fit(noise[:5], kv_tokens=10)
    with pytest.raises(UsageError, match="took no time"):
        fit([*noise, (Load.of([], [1]), 0.0)], kv_tokens=10)
    path = tmp_path / "steps.json"
    path.write_text("{}")
    with pytest.raises(UsageError, match="no saved step model"):
        step_model(f"cpu({path})")
    path.write_text(
        '{"name":"x","coefficients":[1,0,0,0,0],"error":0.2,"steps":50,"kv_tokens":1,"kv_bytes":0,"weight_bytes":0}'
    )
    with pytest.raises(UsageError, match="at most 10%|At most 10%"):
        step_model(f"cpu({path})")


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_nonnegative_least_squares_meet_their_conditions(seed: int) -> None:
    """At the optimum no column's gradient points down, and it is level where the entry is positive."""
    draw = np.random.default_rng(seed)
    a, b = draw.normal(size=(12, 4)), draw.normal(size=12)
    x = nonnegative(a, b)
    gradient = a.T @ (a @ x - b)
    assert (x >= 0).all()
    assert (gradient > -1e-9).all()
    assert np.abs(gradient[x > 0]).max(initial=0.0) < 1e-9


def test_facts() -> None:
    billions = {name: llm.parameters / 1e9 for name, llm in LLMS.items()}
    assert billions == pytest.approx(
        {
            "llama-2-7b": 6.74,
            "llama-2-13b": 13.0,
            "llama-2-70b": 69.0,
            "llama-3-8b": 8.03,
            "opt-13b": 12.8,
            "opt-66b": 65.7,
            "bloom-176b": 176.2,
        },
        rel=0.01,
    )
    assert llm_facts("opt-13b").kv_bytes == 819_200
    assert llm_facts("llama2-70b").kv_bytes == 327_680
    assert gpu_facts("a100") is gpu_facts("a100-80")
    assert all(gpu_facts(name).dollars_per_hour > 0 for name in ("a100-40", "a100", "h100", "h100-pcap", "a40", "a10"))


def test_what_fits() -> None:
    opt, a100 = llm_facts("opt-13b"), gpu_facts("a100")
    assert kv_tokens(opt, a100) == pytest.approx(66_144, rel=0.06)  # what DistServe measured
    assert kv_tokens(opt, a100, tp=2) == pytest.approx(163_008, rel=0.06)
    llama = llm_facts("llama-2-70b")
    assert kv_tokens(llama, a100, tp=8, pp=2) // 2 == kv_tokens(llama, a100, tp=16)  # 8 KV heads: each held twice
    with pytest.raises(UsageError, match=r"llama-2-70b \(138 GB\) does not fit 1 x a100-80.*at least 2"):
        kv_tokens(llama, a100)


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nothing", "There are: opt"),
        ("opt(opt-13b", "no step model"),
        ("opt(opt-13b,tp=2)", "Only opt"),
        ("opt(opt-13b,engine=orca)", "distserve, vllm"),
        ("opt(opt-13b,gpu=h100)", "measured no h100"),
        ("opt(gpt-9)", "no LLM 'gpt-9'.*llama-2-7b"),
        ("lin(llama-3-8b,gpu=b200)", "no GPU 'b200'.*a100-40"),
        ("lin(llama-2-70b,gpu=a100,tp=4)", "vidur/a100/llama-2-70b/mlp.csv.*llama-2-70b on a100"),
        ("lin(llama-3-8b,tp=x)", "no number"),
        ("lin(llama-3-8b,tp=0)", "out of range"),
        ("lin(llama-3-8b,overhead_ms=-1)", "out of range"),
        ("lin(llama-3-8b,speed=2)", "It takes: llm, gpu, tp"),
        ("lin(llama-3-8b,tp=1,tp=1)", "no argument"),
        ("tab(llama-2-70b)", "needs the profile splitwise_perf_model.csv"),
        ("vidur(llama-3-8b)", "needs the profile vidur/a100/llama-3-8b/mlp.csv"),
        ("cpu", "lacks its path"),
        ("cpu(/nowhere.json)", "cannot be read"),
    ],
)
def test_errors_say_what_there_is(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        step_model(text)
    assert re.search(says, str(caught.value))
