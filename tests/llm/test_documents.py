"""Documents of a prompt: cut at their borders, part of the prompt without fusion, used again with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nubes.kernel.errors import NotFound, UnknownPolicy
from nubes.llm.api import app, documents
from nubes.llm.engine.opening import open_engine
from tests.llm.api_fakes import FakeEngine, served, user

BEES = (
    "Honey bees live in colonies of many thousands. A colony has one queen, who lays all of the eggs. Workers gather "
    "nectar and pollen, feed the brood and keep the hive at thirty-five degrees. Drones do not gather anything."
)
TEA = (
    "Tea comes from the leaves of one plant, Camellia sinensis. Green tea is heated soon after it was picked; black tea "
    "is oxidised first. The river Vrbas flows through the town of Banja Luka, where little tea is drunk."
)
MOSS = {"title": "Moss", "text": "Mosses have no roots. They drink through their leaves, and may dry out for years."}


@given(st.lists(st.text("ab \n", min_size=1).filter(lambda text: text.strip() == text), min_size=1, max_size=4))
def test_pieces_are_the_prompt(texts: list[str]) -> None:
    prompt = "[system] be kind\n[user] " + documents.END.join(texts) + "\n\nWhy?\n[assistant]"
    pieces = documents.cut(prompt, texts)
    assert pieces is not None
    assert "".join(pieces) == prompt
    if len(pieces) == len(texts) + 2:
        assert [piece.strip() for piece in pieces[1:-1]] == texts


def test_a_template_may_number_them() -> None:
    prompt = "<s>Document 1: bees\nDocument 2: tea\nWhich?"
    assert documents.cut(prompt, ["bees", "tea"]) == ["<s>Document 1: ", "bees", "\nDocument 2: ", "tea\n", "Which?"]
    assert documents.cut(prompt, ["tea", "bees"]) is None


def test_the_engine_is_told_where_they_are() -> None:
    engine = FakeEngine()
    with served(app({"fake": engine})) as url, httpx2.Client(base_url=url) as http:
        body = {"prompt": "Why?", "documents": ["bees", {"text": "is old", "title": "Tea"}]}
        assert http.post("/v1/completions", json=body).status_code == 200
        asked = engine.requests[-1]
        assert bytes(asked.prompt).decode() == "bees\n\nTea\nis old\n\nWhy?"
        assert asked.chunks == (6, 12)
        body = {"messages": user("Why?"), "documents": ["bees"], "max_tokens": 3}
        assert http.post("/v1/chat/completions", json=body).status_code == 200
        asked = engine.requests[-1]
        assert sum(asked.chunks) < len(asked.prompt)
        wrong = http.post("/v1/chat/completions", json={"messages": user("Why?"), "documents": [{"title": "Tea"}]})
        assert wrong.status_code == 400
        assert "text" in wrong.json()["error"]["message"]


def test_a_wrong_policy_is_an_error_at_once() -> None:
    import nubes

    with pytest.raises(UnknownPolicy, match="cachebland"):
        nubes.App("texts").llm("smollm2-135m", fusion="cachebland")


def made(fusion: str | None) -> Any:
    try:
        return open_engine("smollm2-135m", format="fp32", kv_memory="128MiB", fusion=fusion)
    except NotFound as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def plain() -> Iterator[Any]:
    engine = made(None)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def fused() -> Iterator[Any]:
    engine = made("cacheblend(share=0.3)")
    yield engine
    engine.close()


def test_a_text_seen_before_is_used_again_wherever_it_stands(plain: Any, fused: Any) -> None:
    answers: dict[str, list[str]] = {}
    cached: dict[str, list[int]] = {}
    asks = ([BEES, TEA], [MOSS, TEA, BEES], [BEES, TEA, MOSS])
    for name, engine in (("plain", plain), ("fused", fused)):
        with served(app({"one": engine})) as url, httpx2.Client(base_url=url, timeout=60) as http:
            for texts in asks:
                question = {"role": "user", "content": "Which river flows through Banja Luka?"}
                body = {"messages": [question], "documents": texts, "max_tokens": 16, "temperature": 0}
                answer = http.post("/v1/chat/completions", json=body).json()
                answers.setdefault(name, []).append(answer["choices"][0]["message"]["content"])
                usage = answer["usage"]
                cached.setdefault(name, []).append(usage["prompt_tokens_details"]["cached_tokens"])
            salted = http.post("/v1/chat/completions", json={**body, "cache_salt": "x"}).json()["usage"]
            assert salted["prompt_tokens_details"]["cached_tokens"] == 0
    assert cached["fused"][0] == 0
    assert min(cached["fused"][1:]) > 60  # of some 110 tokens of BEES and TEA, a third is computed
    assert cached["plain"][1] < 40, "a prefix ends where another text begins"
    assert all("Vrbas" in answer for of in answers.values() for answer in of)


def test_completions_take_them_too(plain: Any, fused: Any) -> None:
    found = {}
    for name, engine in (("plain", plain), ("fused", fused)):
        with served(app({"one": engine})) as url, httpx2.Client(base_url=url, timeout=60) as http:
            body = {"prompt": "The river of Banja Luka is", "documents": [TEA], "max_tokens": 4, "temperature": 0}
            answers = [http.post("/v1/completions", json={**body, "cache_salt": "c"}).json() for _ in range(2)]
            found[name] = [answer["choices"][0]["text"] for answer in answers]
            assert answers[0]["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
            assert answers[1]["usage"]["prompt_tokens_details"]["cached_tokens"] > 30
    assert len({answer for of in found.values() for answer in of}) == 1, "one text at the beginning: nothing is lost"
