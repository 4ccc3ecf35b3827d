"""What tests of the HTTP API share. Each of their modules says in a fixture `there` what is served: (url, engine, ...)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

if TYPE_CHECKING:
    from tests.llm.api_fakes import FakeEngine

KEY = "a"  # where keys are asked for it is one of them


@pytest.fixture
def engine(there: Any) -> FakeEngine:
    there[1].reset()
    return there[1]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def client(there: Any) -> Iterator[Any]:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=there[0] + "/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def http(there: Any) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=there[0], headers={"x-api-key": KEY}, timeout=20) as client:
        yield client
