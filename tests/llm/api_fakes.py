"""An engine that says what it is told to, one byte a step: it can hold back, stall, fail, and it sees who leaves."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from nubes.kernel.errors import NotFound, UsageError
from nubes.llm.engine.structured import Constraint
from nubes.llm.errors import ContextTooLong
from nubes.llm.live import Stats
from nubes.llm.spec import Delta, Request, TokenLogprob

EOS = 256


class FakeTokens:
    """One token for each byte, and an end. The template writes `[role] content` lines."""

    eos = frozenset({EOS})
    vocab = 257

    def __init__(self, tools: bool = True) -> None:
        self.tools = tools

    def encode(self, text: str, special: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(t for t in tokens if t < 256).decode("utf-8", "replace")

    def piece(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
        **extra: Any,
    ) -> str:
        if messages[-1]["content"] == "refuse me":
            raise UsageError("The template refuses it.")
        lines = [f"[{name}={value}]" for name, value in extra.items()]
        if self.tools:
            lines += [f"[tool] {tool['function']['name']}" for tool in tools]
        for message in messages:
            lines.append(f"[{message['role']}] {message['content']}")
            if self.tools:
                lines += [f"[call] {call['function']}" for call in message.get("tool_calls", ())]
        return "\n".join(lines) + "\n" + ("[assistant] " if add_generation_prompt else "")


def shout(request: Request) -> str:
    """What is said by default: the last line of the user, aloud."""
    text = bytes(t for t in request.prompt if t < 256).decode()
    lines = [line for line in text.splitlines() if line.startswith("[user] ")]
    return lines[-1].removeprefix("[user] ").upper() if lines else text.upper()


class FakeEngine:
    """Deterministic: the answer is `say(request)`, each token has log probability -0.5 and " " as the second best."""

    def __init__(
        self, name: str = "fake", context: int = 4096, adapters: Sequence[str] = (), tools: bool = True
    ) -> None:  # fmt: skip
        self.name = name
        self.context = context
        self.adapters = adapters
        self.tokens = FakeTokens(tools)
        self.say: Callable[[Request], str] = shout
        self.requests: list[Request] = []
        self.running: set[str] = set()
        self.left = threading.Event()  # somebody left before the end
        self.refuse: Exception | None = None  # raised at once
        self.fail: Exception | Delta | None = None  # after `fail_after` tokens
        self.fail_after = 3
        self.hold_after: int | None = None  # tokens after which nothing comes any more
        self.stalled_s = 0.0
        self.generated = 0

    def reset(self) -> None:
        FakeEngine.__init__(self, self.name, self.context, self.adapters, self.tokens.tools)

    async def generate(self, request: Request) -> AsyncIterator[Delta]:
        self.requests.append(request)
        if self.refuse is not None:
            raise self.refuse
        if len(request.prompt) >= self.context:
            raise ContextTooLong(f"{len(request.prompt)} tokens do not fit {self.context}.")
        self.running.add(request.id)
        ended = False
        try:
            streams = [self._choice(request, index) for index in range(request.n)]
            count = 0
            while streams:
                for stream in list(streams):
                    if self.hold_after is not None and count >= self.hold_after:
                        await asyncio.Event().wait()
                    if self.fail is not None and count >= self.fail_after:
                        if isinstance(self.fail, Exception):
                            raise self.fail
                        yield self.fail
                        return
                    await asyncio.sleep(0)
                    count += 1
                    delta = next(stream)
                    self.generated += len(delta.tokens)
                    if count == 1:
                        delta.queued_s, delta.cached = 0.001, min(5, len(request.prompt) - 1)
                    if delta.finish:
                        streams.remove(stream)
                    ended = not streams
                    yield delta
        finally:
            self.running.discard(request.id)
            if not ended:
                self.left.set()

    def _choice(self, request: Request, index: int) -> Iterator[Delta]:
        how = request.sampling
        wanted = iter([*self.say(request).encode(), EOS])
        constraint = Constraint(how.grammar, self.tokens) if how.grammar else None
        said, shown, limit = b"", 0, how.max_tokens or self.context - len(request.prompt)
        for number in range(limit):
            token = _allowed(constraint, next(wanted, EOS)) if constraint else next(wanted)
            logprobs = [_logprob(token)] if how.logprobs is not None else None
            if token == EOS:
                yield Delta(index, said.decode()[shown:], [token], logprobs, "stop", None)
                return
            said += bytes([token])
            finish = "length" if number == limit - 1 else None
            stop = next((s for s in how.stop if s.encode() in said), None)
            if stop is not None:
                end = said.decode().index(stop) + (len(stop) if how.include_stop else 0)
                yield Delta(index, said.decode()[shown:end], [token], logprobs, "stop", stop)
                return
            text = said.decode("utf-8", "ignore")
            held = 0 if finish else max((n for s in how.stop for n in range(len(s)) if text.endswith(s[:n])), default=0)
            new, shown = text[shown : len(text) - held], max(shown, len(text) - held)
            yield Delta(index, new, [token], logprobs, finish)

    def load_adapter(self, name: str, path: str) -> None:
        if name in self.adapters:
            raise UsageError(f"There is an adapter {name!r} already.")
        self.adapters = [*self.adapters, name]

    def unload_adapter(self, name: str) -> None:
        if name not in self.adapters:
            raise NotFound(f"There is no adapter {name!r}.")
        self.adapters = [other for other in self.adapters if other != name]

    def stats(self) -> Stats:
        return Stats(
            running=len(self.running), waiting=2, blocks=100, free_blocks=75, prefix_queries=10, prefix_hits=4,
            preemptions=1, prompt_tokens=sum(len(r.prompt) for r in self.requests), generation_tokens=self.generated,
            steps=self.generated, stalled_s=self.stalled_s,
        )  # fmt: skip


def _allowed(constraint: Constraint, wanted: int) -> int:
    """The wanted token if the grammar lets it come, otherwise one that leads to an end."""
    mask = constraint.mask()
    choices = [wanted, EOS, *b'"}]0/>', *range(256)]
    token = next(t for t in choices if mask[t])
    constraint.advance(token)
    return token


def _logprob(token: int) -> TokenLogprob:
    text, raw = (chr(token), bytes([token])) if token < 256 else ("", b"")
    return TokenLogprob(token, text, raw, -0.5, ((token, text, raw, -0.5), (32, " ", b" ", float("-inf"))))


class FakeEmbedder:
    """The vector of a text: how long it is, and nothing."""

    name = "embed"
    context = 512
    dimensions = 4

    async def embed(self, texts: Sequence[str | list[int]]) -> tuple[list[list[float]], int]:
        return [[1.0, 0.0, 0.0, float(len(text))] for text in texts], sum(len(text) for text in texts)


@contextlib.contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """The app under uvicorn in a thread, on a real socket: its URL."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", loop="asyncio", lifespan="off")
    server = uvicorn.Server(config)
    server.config.timeout_graceful_shutdown = 1
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 10
    while not server.started and time.monotonic() < until:
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]
