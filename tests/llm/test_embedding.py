"""Embeddings: the same vectors as transformers', whatever they are batched with."""

from __future__ import annotations

import asyncio
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from nubes.kernel.errors import NotFound, UsageError
from nubes.llm.checkpoint import find
from nubes.llm.engine.embedding import Encoder, is_encoder
from nubes.llm.errors import BrokenModel, ContextTooLong

TEXTS = ["A cat sat on the mat.", "Felines like rugs.", "Quarterly revenue fell.", "x", "naïve café 東京 " * 30]


@pytest.fixture(scope="module")
def folder() -> Path:
    try:
        return find("all-minilm-l6-v2")
    except NotFound as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return Encoder("minilm", folder)


def test_vectors_are_those_of_transformers(folder: Path, encoder: Encoder) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.BertModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].float()
    wanted = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1)).numpy()
    vectors, tokens = asyncio.run(encoder.embed(TEXTS))
    assert tokens == int(batch["attention_mask"].sum())
    assert np.abs(np.array(vectors) - wanted).max() < 1e-5


def test_a_vector_does_not_depend_on_its_company(encoder: Encoder) -> None:
    draw = random.Random(0)
    tokens = [[draw.randrange(1000, 20_000) for _ in range(draw.choice([1, 5, 40, 300]))] for _ in range(20)]
    together = encoder.encode(tokens)
    for at in (0, 7, 19):
        assert np.abs(encoder.encode([tokens[at]])[0] - together[at]).max() < 1e-5
    assert np.allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)


def test_like_is_near(encoder: Encoder) -> None:
    cat, feline, money, *_ = encoder.encode([encoder.tokens(text) for text in TEXTS])
    assert cat @ feline > cat @ money + 0.2


def test_what_cannot_be_embedded(encoder: Encoder) -> None:
    with pytest.raises(ContextTooLong, match="512"):
        encoder.tokens("word " * 600)
    with pytest.raises(UsageError):
        encoder.tokens([])
    with pytest.raises(UsageError, match="vocabulary"):
        encoder.tokens([40_000])


def test_a_damaged_model_says_so(folder: Path, tmp_path: Path) -> None:
    assert is_encoder(folder)
    assert not is_encoder(tmp_path)
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(folder / name, tmp_path)
    whole = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BrokenModel, match="Get it again"):
        Encoder("broken", tmp_path)
