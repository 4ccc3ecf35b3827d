"""The real model at hand, against transformers: the same logits, the same greedy answers, the same quality in few bits."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import httpx2
import numpy as np
import pytest

from nubes.kernel.errors import NotFound
from nubes.llm.checkpoint import Checkpoint, load
from nubes.llm.engine.local import LocalEngine
from nubes.llm.engine.opening import open_runtime
from nubes.llm.runtime.rows import causal
from nubes.llm.spec import Request, Sampling
from tests.llm.api_fakes import served

TOPICS = [
    "clouds",
    "rivers",
    "trains",
    "bread",
    "chess",
    "stars",
    "glaciers",
    "violins",
    "bees",
    "castles",
    "volcanoes",
    "maps",
    "lenses",
    "bridges",
    "tea",
    "moss",
]
ASKS = (
    "Explain {} to a child.",
    "List five facts about {}.",
    "Write two lines of verse on {}.",
    "Why do people like {}?",
)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    try:
        return load("smollm2-135m")
    except NotFound as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def reference(checkpoint: Checkpoint) -> Any:
    """The same weights in transformers."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    s = checkpoint.shape
    config = transformers.LlamaConfig(
        vocab_size=s.vocab, hidden_size=s.hidden, intermediate_size=s.ffn, num_hidden_layers=s.layers,
        num_attention_heads=s.heads, num_key_value_heads=s.kv_heads, head_dim=s.head_dim, rms_norm_eps=s.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": s.rope_theta}, max_position_embeddings=s.context,
        tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    state = {name: torch.from_numpy(checkpoint.tensor(name).copy()) for name in checkpoint.names}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model = model.to_empty(device="cpu")
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    model.load_state_dict(state, strict=False)
    return model.float().eval()


def prompts(checkpoint: Checkpoint) -> list[list[int]]:
    tokens = checkpoint.tokens
    return [
        tokens.encode(tokens.chat([{"role": "user", "content": ask.format(topic)}])) for topic in TOPICS for ask in ASKS
    ]


def expected(reference: Any, text: list[int]) -> Any:
    torch = pytest.importorskip("torch")
    with torch.inference_mode():
        return reference(torch.tensor([text])).logits[0].numpy()


def test_logits_are_those_of_transformers(checkpoint: Checkpoint, reference: Any) -> None:
    runtime = open_runtime(checkpoint, "fp32", "cpu", kv_bytes=1 << 26)
    draw = random.Random(0)
    for length in (1, 17, 200):
        text = [draw.randrange(checkpoint.shape.vocab) for _ in range(length)]
        table = draw.sample(range(runtime.blocks), -(-length // runtime.block_size))
        got = runtime.step(np.array(text, np.int32), causal([(table, 0, length)]), np.arange(length, dtype=np.int32))
        assert np.abs(np.asarray(got) - expected(reference, text)).max() < 1e-3
    runtime.close()


@pytest.mark.parametrize("count", [8, pytest.param(64, marks=pytest.mark.slow)])
def test_greedy_answers_are_those_of_transformers(checkpoint: Checkpoint, reference: Any, count: int) -> None:
    runtime = open_runtime(checkpoint, "fp32", "cpu", kv_bytes=1 << 28)
    engine = LocalEngine("smollm2", runtime, checkpoint.tokens, batching="sarathi(budget=100)")
    asked = prompts(checkpoint)[:: 64 // count]

    async def answer(number: int) -> list[int]:
        request = Request(
            id=str(number), prompt=asked[number], sampling=Sampling(max_tokens=24, temperature=0.0, ignore_eos=True)
        )
        return [token async for delta in engine.generate(request) for token in delta.tokens]

    async def all_of_them() -> list[list[int]]:
        return await asyncio.gather(*(answer(number) for number in range(count)))

    answers = asyncio.run(all_of_them())
    engine.close()
    for prompt, said in zip(asked, answers, strict=True):
        logits = expected(reference, prompt + said[:-1])[len(prompt) - 1 :]
        # Token for token: given what came before, each is transformers' likeliest one.
        assert logits.argmax(axis=1).tolist() == said


def test_log_probabilities_of_prompts_are_those_of_transformers(checkpoint: Checkpoint, reference: Any) -> None:
    """Over HTTP, whole and streamed, also where a prefix is there already and the prompt takes several steps."""
    from nubes.llm.api import app

    runtime = open_runtime(checkpoint, "fp32", "cpu", kv_bytes=1 << 26)
    engine = LocalEngine("smollm2", runtime, checkpoint.tokens, batching="sarathi(budget=40)")
    tokens = checkpoint.tokens.encode("Bees visit flowers: " + "clover, lime, heather - and ünïcödé 🐝 blossoms. " * 5)
    assert len(tokens) > 90
    exact = expected(reference, tokens).astype(np.float64)
    exact -= np.log(np.exp(exact).sum(axis=1, keepdims=True))
    want = [None, *(float(row[token]) for row, token in zip(exact[:-1], tokens[1:], strict=True))]
    ranks = [int((row > row[token]).sum()) + 1 for row, token in zip(exact[:-1], tokens[1:], strict=True)]
    text = checkpoint.tokens.decode(tokens)
    with served(app({"smollm2": engine})) as url, httpx2.Client(base_url=url, timeout=60) as http:

        def ask(path: str = "completions", **more: Any) -> Any:
            answer = http.post(f"/v1/{path}", json={"prompt": tokens, "temperature": 0, "max_tokens": 3, **more})
            assert answer.status_code == 200, answer.text
            return answer.json()

        plain = ask()["choices"][0]
        for answer in ask(echo=True, logprobs=2, n=2)["choices"]:
            found = answer["logprobs"]
            assert answer["text"] == text + plain["text"]
            assert found["token_logprobs"][0] is found["top_logprobs"][0] is None
            assert found["token_logprobs"][1 : len(tokens)] == pytest.approx(want[1:], abs=1e-3)
            assert len(found["tokens"]) == len(found["text_offset"]) == len(tokens) + 3
            assert found["text_offset"] == sorted(found["text_offset"])
            assert answer["text"][found["text_offset"][len(tokens)] :] == plain["text"]
            for row, told in zip(exact[:-1], found["top_logprobs"][1 : len(tokens)], strict=True):
                if "\ufffd" not in told:  # halves of characters have one name
                    assert max(told.values()) == pytest.approx(float(row.max()), abs=1e-3)
        after = ask()
        assert after["choices"][0]["text"] == plain["text"]
        assert after["usage"]["prompt_tokens_details"]["cached_tokens"] > 64, "what it computed is there for others"

        alone = ask(echo=True, logprobs=0, max_tokens=0)
        assert alone["choices"][0]["text"] == text
        assert alone["choices"][0]["logprobs"]["token_logprobs"] == pytest.approx(want, abs=1e-3)
        assert alone["usage"]["completion_tokens"] == 0
        assert alone["usage"]["prompt_tokens_details"]["cached_tokens"] == 0

        body = {"prompt": tokens, "temperature": 0, "max_tokens": 3, "echo": True, "logprobs": 1, "stream": True}
        lines = [line for line in http.post("/v1/completions", json=body).text.splitlines() if "choices" in line]
        chunks = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines]
        told = [one for chunk in chunks for one in chunk["logprobs"]["token_logprobs"]]
        assert told[: len(tokens)] == pytest.approx(want, abs=1e-3)
        assert len(told) == len(tokens) + 3
        assert "".join(chunk["text"] for chunk in chunks) == text + plain["text"]

        told = ask(prompt_logprobs=1)["choices"][0]["prompt_logprobs"]
        assert told[0] is None
        for nth, of in enumerate(told[1:]):
            one = of[str(tokens[nth + 1])]
            assert one["logprob"] == pytest.approx(want[nth + 1], abs=1e-3)
            assert one["rank"] == ranks[nth]
            assert {each["rank"] for each in of.values()} == {1, ranks[nth]}
        chat = ask("chat/completions", messages=[{"role": "user", "content": "Hi"}], prompt_logprobs=0)
        assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]
    engine.close()


def perplexity(runtime: Any, text: list[int], window: int = 512) -> float:
    loss, count = 0.0, 0
    for at in range(0, len(text) - window, window):
        piece = np.array(text[at : at + window], np.int32)
        table = list(range(-(-window // runtime.block_size)))
        logits = np.asarray(runtime.step(piece, causal([(table, 0, window)]), np.arange(window, dtype=np.int32)))
        logits = logits[:-1] - logits[:-1].max(axis=1, keepdims=True)
        chosen = logits[np.arange(window - 1), piece[1:]]
        loss += float((np.log(np.exp(logits).sum(axis=1)) - chosen).sum())
        count += window - 1
    return float(np.exp(loss / count))


def test_few_bits_cost_little(checkpoint: Checkpoint) -> None:
    """Perplexity on prose that is on every machine with Python: int8 within 1 % of fp32, 4 bits of their own within 2."""
    from pydoc_data.topics import topics

    prose = " ".join(" ".join(text.split()) for _, text in sorted(topics.items())[:12])
    text = checkpoint.tokens.encode(prose)[:3073]
    found = {}
    for format in ("fp32", "int8", "int4"):
        runtime = open_runtime(checkpoint, format, "cpu", kv_bytes=1 << 26)
        found[format] = perplexity(runtime, text)
        runtime.close()
    assert found["int8"] == pytest.approx(found["fp32"], rel=0.01), found
    assert found["int4"] == pytest.approx(found["fp32"], rel=0.02), found
