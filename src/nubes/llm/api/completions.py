"""POST /v1/completions: texts or tokens, continued."""

from __future__ import annotations

import asyncio
import codecs
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from itertools import accumulate
from typing import Any, TypeVar

from nubes.llm.api import documents, sse, turns
from nubes.llm.api.endpoint import Answer
from nubes.llm.api.fields import Completion, StreamOptions
from nubes.llm.api.problems import Problem, invalid, unsupported
from nubes.llm.api.sampling import grammar, known, sampling
from nubes.llm.api.service import Call, Model, Service, new_id
from nubes.llm.api.turns import LOWEST, Choice
from nubes.llm.live import Engine, Tokens
from nubes.llm.spec import Delta, Request, TokenLogprob

PROMPTS = 256  # in one request
DEFAULT_TOKENS = 16  # OpenAI's

T = TypeVar("T")


async def answer(service: Service, call: Call, asked: Completion) -> Answer:
    """A `text_completion`, or its chunks."""
    model = service.find(asked.model)
    n, best_of = asked.n or 1, asked.best_of or asked.n or 1
    _check(asked, n, best_of)
    max_tokens = DEFAULT_TOKENS if asked.max_tokens is None else max(asked.max_tokens, 1)
    logprobs = asked.logprobs if best_of == n else asked.logprobs or 0  # the best are the likeliest
    how = sampling(
        asked, model.engine, stop=asked.stop, max_tokens=max_tokens, logprobs=logprobs, grammar=grammar(asked),
        prompt_logprobs=max((n for n in (asked.prompt_logprobs, _echoed(asked)) if n is not None), default=None),
    )  # fmt: skip
    id = new_id("cmpl-")
    texts = documents.texts(asked.documents)
    requests = []
    for i, tokens in enumerate(await prompts(model.engine, asked.prompt, "prompt")):
        pieces: list[str | list[int]] = ["", *(text + documents.END for text in texts), tokens] if texts else [tokens]
        tokens, chunks = await documents.encoded(model.engine, pieces, texts)
        requests.append(
            await turns.request(
                model, call, asked, tokens, how, id=f"{id}-{i}", n=best_of, field="prompt", chunks=chunks
            )
        )
    made = Made(service, call, asked, model, requests, id, n)
    return made.stream() if asked.stream else await made.whole()


def _echoed(asked: Completion) -> int | None:
    """How many likely tokens are told beside each of the prompt's; None: nothing is."""
    return asked.logprobs if asked.echo else None


def _check(asked: Completion, n: int, best_of: int) -> None:
    if best_of < n:
        raise invalid("best_of", f"best_of is {best_of}, less than n, which is {n}.")
    if best_of > n and asked.stream:
        raise invalid("best_of", "What is best is known only at the end: best_of and stream exclude each other.")
    if asked.max_tokens == 0 and not asked.echo:
        raise invalid("max_tokens", "max_tokens of 0 is for echo, which returns the prompt.")
    turns.check_prompt_logprobs(asked.prompt_logprobs, asked.stream)
    if asked.stream_options is not None and not asked.stream:
        raise invalid("stream_options", "stream_options needs stream to be true.")
    if asked.stream_options is not None and asked.stream_options.include_obfuscation:
        raise unsupported("stream_options.include_obfuscation", "Chunks are as long as their text.")


async def prompts(engine: Engine, given: str | Sequence[str | int | list[int]], field: str) -> list[list[int]]:
    """The prompts of a request as tokens. Raises `Problem` for lists that mix texts and tokens."""
    found: list[list[int]] = []
    for one in listed(given, field):
        found.append(await turns.encoded(engine, one) if isinstance(one, str) else known(field, one, engine))
    return found


def listed(given: str | Sequence[str | int | list[int]], field: str) -> list[str | list[int]]:
    """The four ways to give texts as one: a text, texts, tokens, or lists of tokens."""
    if isinstance(given, str):
        return [given]
    if not given:
        raise invalid(field, f"{field} is empty.")
    kinds = {type(one) for one in given}
    if len(kinds) > 1:
        raise Problem(400, f"{field} is either texts, or tokens, or lists of tokens.", field, "invalid_type")
    if kinds == {int}:
        return [[one for one in given if isinstance(one, int)]]
    if len(given) > PROMPTS:
        raise invalid(field, f"{field} has {len(given)} entries; {PROMPTS} may come at once.")
    return [one for one in given if not isinstance(one, int)]


class Made:
    """The answers to all prompts on their way. Choice j of prompt i is number i * n + j."""

    def __init__(
        self, service: Service, call: Call, asked: Completion, model: Model, requests: list[Request], id: str, n: int
    ) -> None:
        self.asked = asked
        self.model = model
        self.requests = requests
        self.n = n
        self.head: dict[str, Any] = {
            "id": id, "object": "text_completion", "created": int(time.time()), "model": asked.model or model.name
        }  # fmt: skip
        self.choices = [[Choice(tools=False) for _ in range(r.n)] for r in requests]
        self.cached = [0] * len(requests)
        streams = [service.generate(model, r, call) for r in requests]
        self.deltas = merged([prompts_alone(stream) for stream in streams] if asked.max_tokens == 0 else streams)

    async def whole(self) -> bytes:
        async with aclosing(self.deltas):
            async for at, delta in self.deltas:
                self.cached[at] = max(self.cached[at], delta.cached)
                self.choices[at][delta.index].add(delta)
        usage = self._usage()
        found = []
        for at, choices in enumerate(self.choices):
            if len(choices) > self.n:
                choices = sorted(choices, key=_likeliness, reverse=True)[: self.n]
            found += [self._choice(at, j, choice) for j, choice in enumerate(choices)]
        return sse.encode({**self.head, "choices": found, "usage": usage})

    def _choice(self, at: int, j: int, choice: Choice) -> dict[str, Any]:
        echo = self._echo(at)
        logprobs = None
        if self.asked.logprobs is not None:
            logprobs = self._logprobs(at, choice.logprobs, len(echo), bool(echo))
        found: dict[str, Any] = {"index": at * self.n + j, "text": echo + "".join(choice.text), "logprobs": logprobs}
        found |= {"finish_reason": choice.finish, "stop_reason": choice.stop_reason}
        if self.asked.return_token_ids:
            found |= {"token_ids": choice.tokens, "prompt_token_ids": self.requests[at].prompt}
        if self.asked.prompt_logprobs is not None:
            found["prompt_logprobs"] = turns.prompt_logprobs(self.choices[at][0].prompt, self.asked.prompt_logprobs)
        return found

    def _logprobs(self, at: int, of: Sequence[TokenLogprob], offset: int, echo: bool) -> dict[str, list[Any]]:
        """Of an answer's tokens; with `echo` those of its prompt come first."""
        top = self.asked.logprobs or 0
        found = legacy(of, offset, top)
        if not echo:
            return found
        before = of_prompt(self.model.engine.tokens, self.requests[at].prompt, self.choices[at][0].prompt, top)
        return {name: before[name] + found[name] for name in found}

    def _echo(self, at: int) -> str:
        return self.model.engine.tokens.decode(self.requests[at].prompt) if self.asked.echo else ""

    def _usage(self) -> Any:
        generated = sum(len(choice.tokens) for choices in self.choices for choice in choices)
        return turns.usage(sum(len(r.prompt) for r in self.requests), generated, sum(self.cached))

    async def stream(self) -> AsyncGenerator[bytes, None]:
        asked, encode, options = self.asked, sse.encode, self.asked.stream_options or StreamOptions()
        counted, always = options.include_usage, options.include_usage and options.continuous_usage_stats
        head = b"data: " + encode(self.head)[:-1] + b',"choices":[{"index":'
        tail = b'}],"usage":null}\n\n' if counted else b"}]}\n\n"
        offsets = [[0] * r.n for r in self.requests]
        echoed: set[int] = set()
        async with aclosing(self.deltas):
            async for at, delta in self.deltas:
                self.cached[at] = max(self.cached[at], delta.cached)
                index = at * self.n + delta.index
                choice = self.choices[at][delta.index]
                text = "".join(part for part in choice.add(delta) if isinstance(part, str))
                ids, first = b"", index not in echoed
                if first:
                    echoed.add(index)
                    if asked.echo:
                        echo = self._echo(at)
                        text = echo + text
                        offsets[at][delta.index] = len(echo)
                    if asked.return_token_ids:
                        ids = b',"prompt_token_ids":' + encode(self.requests[at].prompt)
                more = b',"logprobs":null'
                if asked.logprobs is not None:
                    told = delta.logprobs or ()
                    found = self._logprobs(at, told, offsets[at][delta.index], first and bool(asked.echo))
                    offsets[at][delta.index] += sum(len(one.text) for one in told)
                    more = b',"logprobs":' + encode(found)
                if asked.return_token_ids:
                    ids += b',"token_ids":' + encode(delta.tokens)
                if not text and delta.finish is None and not delta.tokens:
                    continue
                if always:
                    tail = b'}],"usage":' + encode(self._usage()) + b"}\n\n"
                ended = encode({"finish_reason": choice.finish, "stop_reason": choice.stop_reason})[1:-1]
                yield b'%b%d,"text":%b%b%b,%b%b' % (head, index, encode(text), more, ids, ended, tail)
        if counted:
            yield sse.data({**self.head, "choices": [], "usage": self._usage()})
        yield sse.DONE


def _likeliness(choice: Choice) -> float:
    """Mean log probability of a token."""
    return sum(one.logprob for one in choice.logprobs) / max(len(choice.logprobs), 1)


def legacy(logprobs: Sequence[TokenLogprob], offset: int, top: int) -> dict[str, list[Any]]:
    """Log probabilities in the form of /v1/completions. `offset` is where in the text the first token begins."""
    found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for one in logprobs:
        found["tokens"].append(one.text)
        found["token_logprobs"].append(max(one.logprob, LOWEST))
        likeliest: dict[str, float] = {}
        for _, text, _, logprob in one.top[:top]:  # halves of characters look the same as text: the likeliest is told
            likeliest.setdefault(text, max(logprob, LOWEST))
        found["top_logprobs"].append(likeliest | {one.text: max(one.logprob, LOWEST)} if top else None)
        found["text_offset"].append(offset)
        offset += len(one.text)
    return found


def of_prompt(
    tokens: Tokens, prompt: Sequence[int], scores: Sequence[TokenLogprob | None], top: int
) -> dict[str, list[Any]]:
    """The same of a prompt, whose first token has none."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    offsets = list(accumulate((len(decoder.decode(tokens.piece(token))) for token in prompt[:-1]), initial=0))
    begun = {"tokens": tokens.piece(prompt[0]).decode("utf-8", "replace"), "token_logprobs": None, "top_logprobs": None}
    found = legacy([one for one in scores if one is not None], 0, top)
    return {name: [first, *found[name]] for name, first in begun.items()} | {"text_offset": offsets}


async def prompts_alone(deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[Delta, None]:
    """Deltas without the token that each answer had to have."""
    async with aclosing(deltas):
        async for delta in deltas:
            delta.text, delta.tokens, delta.logprobs = "", [], None
            delta.finish = delta.finish and "length"
            yield delta


async def merged(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """What all streams yield, with the number of each, as it comes. The first that raises ends all."""
    async with AsyncExitStack() as stack:
        for stream in streams:
            await stack.enter_async_context(aclosing(stream))
        if len(streams) == 1:
            async for one in streams[0]:
                yield 0, one
            return
        waiting = {asyncio.ensure_future(anext(stream)): at for at, stream in enumerate(streams)}
        try:
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    at = waiting.pop(task)
                    try:
                        one = task.result()
                    except StopAsyncIteration:
                        continue
                    yield at, one
                    waiting[asyncio.ensure_future(anext(streams[at]))] = at
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
