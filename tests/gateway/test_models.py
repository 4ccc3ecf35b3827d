"""LLMs of a deployed app, through the gateway: real models, the official client, real kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from gateway.running import NUBES, Up, deployed
from nubes.kernel.errors import NotFound

openai = pytest.importorskip("openai")
MODEL = "smollm2-135m"
POEM: dict[str, Any] = {
    "model": MODEL, "messages": [{"role": "user", "content": "Write a long poem on clouds."}],
    "max_tokens": 600, "extra_body": {"ignore_eos": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    from nubes.llm.checkpoint import find

    try:
        find(MODEL), find("all-minilm-l6-v2")
    except NotFound as error:
        pytest.skip(str(error))
    with deployed(tmp_path_factory.mktemp("models"), "llmapp.py") as running:
        yield running


@pytest.fixture(scope="module")
def client(up: Up) -> Any:
    return openai.OpenAI(base_url=f"{up.url}/v1", api_key=up.token, max_retries=0, timeout=120)


def instance(up: Up) -> int:
    """The process that serves the chat model."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        out = subprocess.run(
            [*NUBES, "ps", "--json"], env={**os.environ, "NUBES_DATA": str(up.data)}, capture_output=True, check=True
        )
        for one in json.loads(out.stdout)["instances"]:
            if one["function"].endswith(MODEL) and one["pid"]:
                return int(one["pid"])
        time.sleep(0.2)
    raise AssertionError("no instance serves the model")


def test_models_are_listed_and_answer(client: Any) -> None:
    assert {model.id for model in client.models.list()} == {MODEL, "all-minilm-l6-v2"}
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        max_tokens=12,
        temperature=0,
    )
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens <= 12
    streamed = [
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "What is the capital of France?"}], max_tokens=12,
            temperature=0, stream=True,
        )
    ]  # fmt: skip
    assert "".join(streamed) == answer.choices[0].message.content
    assert len(streamed) > 3


def test_embeddings(client: Any) -> None:
    made = client.embeddings.create(model="all-minilm-l6-v2", input=["a cat", "a kitten", "an invoice"])
    cat, kitten, invoice = (one.embedding for one in made.data)
    near, far = (sum(a * b for a, b in zip(cat, other, strict=True)) for other in (kitten, invoice))
    assert near > far + 0.2


def test_errors_have_the_clients_own_form(up: Up, client: Any) -> None:
    with pytest.raises(openai.NotFoundError, match=MODEL) as told:
        client.chat.completions.create(model="nope", messages=[])
    assert told.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match=r"2048|8192|context") as long:
        client.completions.create(model=MODEL, prompt=[5] * 9000, max_tokens=1)
    assert long.value.code == "context_length_exceeded"
    headers = {"authorization": f"Bearer {up.token}"}
    broken = httpx2.post(f"{up.url}/v1/chat/completions", content=b"{", headers=headers)
    assert broken.status_code == 400
    assert httpx2.post(f"{up.url}/v1/chat/completions", json={}).status_code == 401
    assert httpx2.get(f"{up.url}/v1/chat/completions", headers=headers).status_code == 405


def test_too_much_is_refused_and_who_hangs_up_makes_room(client: Any) -> None:
    """A stream begins with its first token: those that wait have no answer yet, and too many are told so at once."""

    def begin(number: int) -> Any:
        try:
            return client.chat.completions.create(**POEM, stream=True, timeout=5)
        except (openai.InternalServerError, openai.APITimeoutError) as error:
            return error

    with ThreadPoolExecutor(60) as pool:
        begun = list(pool.map(begin, range(60)))
    refused = [one for one in begun if isinstance(one, openai.InternalServerError)]
    assert refused
    for error in refused:
        assert error.status_code == 503
        assert int(error.response.headers["retry-after"]) >= 1
    for stream in begun:
        if not isinstance(stream, Exception):
            stream.close()
    end = time.monotonic() + 30
    while True:
        try:
            client.chat.completions.create(model=MODEL, messages=POEM["messages"], max_tokens=2)
            break
        except openai.InternalServerError:
            assert time.monotonic() < end, "those who hung up still hold their places"
            time.sleep(0.2)


def test_an_engine_killed_mid_answer_ends_with_an_error_and_another_takes_over(up: Up, client: Any) -> None:
    before = instance(up)
    stream = client.chat.completions.create(**POEM, stream=True)
    with pytest.raises((openai.APIError, httpx2.HTTPError, openai.APIConnectionError)):
        for count, _ in enumerate(stream):
            if count == 5:
                os.kill(before, signal.SIGKILL)
    answer = client.chat.completions.create(model=MODEL, messages=POEM["messages"], max_tokens=3)
    assert answer.usage.completion_tokens == 3
    assert instance(up) != before
