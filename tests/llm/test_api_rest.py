"""Completions, embeddings, tokens, models, health and metrics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from llm.api_fakes import EOS, FakeEmbedder, FakeEngine, served, user
from nubes import __version__
from nubes.llm.api import app
from nubes.llm.spec import Request, TokenLogprob

openai = pytest.importorskip("openai", reason="the openai client is not installed")


@pytest.fixture(scope="module")
def there() -> Iterator[tuple[str, FakeEngine]]:
    engine = FakeEngine(adapters=["poet"])
    with served(app({"fake": engine}, {"embed": FakeEmbedder()}, stall_s=5, vllm_metrics=True)) as url:
        yield url, engine


# -- completions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("ab", ["AB"]), (["ab", "c"], ["AB", "C"]), (list(b"ab"), ["AB"]), ([list(b"ab"), list(b"c")], ["AB", "C"]),
    ],
)  # fmt: skip
def test_prompts_of_all_kinds(client: Any, engine: FakeEngine, prompt: Any, texts: list[str]) -> None:
    answer = client.completions.create(model="fake", prompt=prompt)
    assert [(c.index, c.text, c.finish_reason) for c in answer.choices] == [(i, t, "stop") for i, t in enumerate(texts)]
    assert answer.usage.prompt_tokens == sum(map(len, texts))
    assert answer.usage.completion_tokens == sum(len(text) + 1 for text in texts)
    seen = dict.fromkeys(range(len(texts)), "")
    for chunk in client.completions.create(model="fake", prompt=prompt, stream=True):
        seen[chunk.choices[0].index] += chunk.choices[0].text
    assert list(seen.values()) == texts


def test_sixteen_tokens_unless_more_are_asked_for(client: Any, engine: FakeEngine) -> None:
    answer = client.completions.create(model="fake", prompt="x" * 40)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("X" * 16, "length")


def test_echo_and_several(client: Any, engine: FakeEngine) -> None:
    answer = client.completions.create(model="fake", prompt=["ab", "c"], n=2, echo=True)
    assert [(c.index, c.text) for c in answer.choices] == [(0, "abAB"), (1, "abAB"), (2, "cC"), (3, "cC")]
    chunks = list(client.completions.create(model="fake", prompt="ab", echo=True, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "abAB"
    assert chunks[0].choices[0].text == "abA"


def test_log_probabilities_in_the_old_form(client: Any, engine: FakeEngine) -> None:
    found = client.completions.create(model="fake", prompt="ab", logprobs=2).choices[0].logprobs
    assert found.tokens == ["A", "B", ""]
    assert found.token_logprobs == [-0.5, -0.5, -0.5]
    assert found.text_offset == [0, 1, 2]
    assert found.top_logprobs[0] == {"A": -0.5, " ": -9999.0}
    chunks = list(client.completions.create(model="fake", prompt="ab", logprobs=2, stream=True))
    assert [o for c in chunks for o in c.choices[0].logprobs.text_offset] == [0, 1, 2]
    assert [t for c in chunks for t in c.choices[0].logprobs.tokens] == ["A", "B", ""]


def test_the_best_are_the_likeliest(client: Any, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = engine._choice

    def choice(request: Request, index: int) -> Any:
        for delta in plain(request, index):
            delta.logprobs = [
                TokenLogprob(one.token, one.text, one.raw, -float(3 - index)) for one in delta.logprobs or ()
            ]
            delta.text = delta.text and f"{delta.text}{index}"
            yield delta

    monkeypatch.setattr(engine, "_choice", choice)
    answer = client.completions.create(model="fake", prompt="a", n=2, best_of=4)
    assert [(c.index, c.text) for c in answer.choices] == [(0, "A3"), (1, "A2")]
    assert answer.choices[0].logprobs is None
    assert answer.usage.completion_tokens == 8  # of all four


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"suffix": "x"}, "suffix"), ({"best_of": 1, "n": 2}, "best_of"), ({"best_of": 2, "stream": True}, "best_of"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"), ({"logprobs": 21}, "logprobs"), ({"prompt": []}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"), ({"prompt": [9999]}, "prompt"), ({"prompt": [[]]}, "prompt"), ({"prompt": ""}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"), ({"prompt": ["x"] * 257}, "prompt"), ({"max_tokens": 0}, "max_tokens"), ({"prompt": 7}, "prompt"),
    ],
)  # fmt: skip
def test_what_completions_cannot_do(http: httpx2.Client, engine: FakeEngine, more: Any, param: str) -> None:
    answer = http.post("/v1/completions", json={"model": "fake", "prompt": "x", **more})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert engine.requests == []


def test_token_ids_of_completions(http: httpx2.Client, engine: FakeEngine) -> None:
    answer = http.post("/v1/completions", json={"model": "fake", "prompt": "a", "return_token_ids": True}).json()
    assert answer["choices"][0]["prompt_token_ids"] == [97]
    assert answer["choices"][0]["token_ids"] == [65, EOS]


# -- embeddings -----------------------------------------------------------------------------------------------------


def test_vectors(client: Any, http: httpx2.Client) -> None:
    answer = client.embeddings.create(model="embed", input=["a", "bcd"])  # the client asks for base64
    assert [one.embedding for one in answer.data] == [[1, 0, 0, 1], [1, 0, 0, 3]]
    assert answer.usage.total_tokens == 4
    for given, sizes in (("abc", [3]), ([1, 2], [2]), ([[1], [2, 3]], [1, 2])):
        body = {"model": "embed", "input": given, "encoding_format": "float"}
        data = http.post("/v1/embeddings", json=body).json()["data"]
        assert [one["embedding"][3] for one in data] == sizes
    assert client.embeddings.create(model="embed", input="a", dimensions=4).data[0].embedding
    for more, param in (({"dimensions": 3}, "dimensions"), ({"input": []}, "input"), ({"input": ""}, "input")):
        with pytest.raises(openai.BadRequestError) as told:
            client.embeddings.create(**{"model": "embed", "input": "x", **more})
        assert told.value.param == param


# -- tokens ---------------------------------------------------------------------------------------------------------


def test_tokens_there_and_back(http: httpx2.Client, engine: FakeEngine) -> None:
    found = http.post("/tokenize", json={"model": "fake", "prompt": "héy", "return_token_strs": True}).json()
    assert found["tokens"] == list("héy".encode())
    assert (found["count"], found["max_model_len"]) == (4, 4096)
    assert len(found["token_strs"]) == 4
    back = http.post("/detokenize", json={"model": "fake", "tokens": found["tokens"]})
    assert back.json() == {"prompt": "héy"}
    found = http.post("/tokenize", json={"messages": user("a")}).json()  # there is one model only
    assert bytes(found["tokens"]) == b"[user] a\n[assistant] "
    assert http.post("/tokenize", json={"model": "fake"}).status_code == 400
    assert http.post("/detokenize", json={"model": "fake", "tokens": [999]}).json()["error"]["param"] == "tokens"


# -- models ---------------------------------------------------------------------------------------------------------


def test_models_and_their_adapters(client: Any, engine: FakeEngine) -> None:
    found = {model.id: model for model in client.models.list()}
    assert list(found) == ["fake", "fake:poet", "embed"]
    assert found["fake:poet"].parent == "fake"
    assert found["fake"].max_model_len == 4096
    assert client.models.retrieve("fake:poet").id == "fake:poet"
    for name in ("fake:poet", "poet"):
        client.completions.create(model=name, prompt="x")
        assert engine.requests[-1].adapter == "poet"


# -- health and metrics ---------------------------------------------------------------------------------------------


def test_a_frozen_engine_is_not_ready(http: httpx2.Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def look() -> dict[str, int]:
        return {path: http.get(path).status_code for path in ("/livez", "/readyz", "/health")}

    assert look() == {"/livez": 200, "/readyz": 200, "/health": 200}
    engine.stalled_s = 4.9
    assert look() == {"/livez": 200, "/readyz": 200, "/health": 200}
    engine.stalled_s = 5.1
    assert look() == {"/livez": 200, "/readyz": 503, "/health": 503}
    assert "5.1 s" in http.get("/health").json()["reason"]

    def dead() -> None:
        raise RuntimeError

    monkeypatch.setattr(engine, "stats", dead)
    assert look() == {"/livez": 200, "/readyz": 503, "/health": 503}


def test_version(http: httpx2.Client) -> None:
    assert http.get("/version").json() == {"version": __version__}


def samples(http: httpx2.Client) -> dict[str, float]:
    lines = http.get("/metrics").text.splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def test_metrics_count_what_happened(http: httpx2.Client, client: Any, engine: FakeEngine) -> None:
    before = samples(http)
    client.chat.completions.create(model="fake", messages=user("hello"), n=2)
    client.completions.create(model="fake:poet", prompt="hello", max_tokens=3, stream=False)
    http.post("/v1/completions", json={"model": "fake", "prompt": ""})
    after = samples(http)

    def more(name: str) -> float:
        return round(after[name] - before.get(name, 0.0), 6)

    for ours, theirs in (("nubes_llm_{}", "vllm:{}"),):
        model, name = '{model="fake"}', '{model_name="fake"}'
        for mine, vllm, count in (
            ("time_to_first_token_seconds_count", "time_to_first_token_seconds_count", 2),
            ("inter_token_seconds_count", "inter_token_latency_seconds_count", 2 * 5 + 2),
            ("time_per_output_token_seconds_count", "request_time_per_output_token_seconds_count", 3),
            ("queue_seconds_count", "request_queue_time_seconds_count", 2),
            ("queue_seconds_sum", "request_queue_time_seconds_sum", 0.002),
            ("prefill_seconds_count", "request_prefill_time_seconds_count", 2),
            ("decode_seconds_count", "request_decode_time_seconds_count", 2),
            ("request_seconds_count", "e2e_request_latency_seconds_count", 2),
        ):
            assert more(ours.format(mine) + model) == count, mine
            assert more(theirs.format(vllm) + name) == count, vllm
    assert more('nubes_llm_requests_total{finish="stop",model="fake"}') == 2
    assert more('nubes_llm_requests_total{finish="length",model="fake"}') == 1
    assert more('vllm:request_success_total{finished_reason="stop",model_name="fake"}') == 2
    assert more('nubes_llm_http_requests_total{route="/v1/completions",status="400"}') == 1
    assert (
        after['nubes_llm_kv_usage_ratio{model="fake"}'] == after['vllm:kv_cache_usage_perc{model_name="fake"}'] == 0.25
    )
    assert after['nubes_llm_generation_tokens_total{model="fake"}'] == 2 * 6 + 3
    for name in (
        "requests_running", "requests_waiting", "prefix_cache_queries_total", "prefix_cache_hits_total",
        "preemptions_total", "prompt_tokens_total", "steps_total", "stalled_seconds",
    ):  # fmt: skip
        assert f'nubes_llm_{name}{{model="fake"}}' in after
    for name in ("num_requests_running", "num_requests_waiting", "prefix_cache_hits_total", "prompt_tokens_total"):
        assert f'vllm:{name}{{model_name="fake"}}' in after


def test_vllm_names_only_on_request() -> None:
    with served(app({"fake": FakeEngine()})) as url:
        text = httpx2.get(url + "/metrics").text
    assert "nubes_llm_requests_running" in text
    assert "vllm" not in text


def test_adapters_come_and_go(http: httpx2.Client, engine: FakeEngine) -> None:
    loaded = {"lora_name": "pirate", "lora_path": "/adapters/pirate"}
    answer = http.post("/v1/load_lora_adapter", json=loaded)
    assert answer.status_code == 200
    assert "'pirate' added" in answer.json()["message"]
    assert "fake:pirate" in [model["id"] for model in http.get("/v1/models").json()["data"]]
    assert http.post("/v1/load_lora_adapter", json=loaded).status_code == 400
    assert http.post("/v1/load_lora_adapter", json={"lora_name": "x"}).status_code == 400
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": "pirate"}).status_code == 200
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": "pirate"}).status_code == 404
