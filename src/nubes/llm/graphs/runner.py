"""Runs a graph beside the engine: no answer goes to the client and back before the next call begins."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from time import monotonic

import msgspec

from nubes.kernel.errors import Unavailable
from nubes.llm.graphs.manager import Manager, Task
from nubes.llm.graphs.prefixes import StaticPrefixes, boundaries
from nubes.llm.graphs.spec import Graph, Transform, plan, variable
from nubes.llm.graphs.template import Output, Text, parse
from nubes.llm.graphs.transforms import apply, check
from nubes.llm.live import Engine, Tokens
from nubes.llm.spec import Delta, Finish, Request, Work

STREAMED = ("ttft", "tpot")  # who asks for these reads as it is written
WIDE = 50_000  # characters: from here on texts are turned into tokens beside the event loop

Generate = Callable[[Request], AsyncIterator[Delta]]


class Said(msgspec.Struct, frozen=True, tag="delta"):
    """A part of what the model writes for a variable that is read as it is written, before any transform."""

    variable: str
    text: str


class Value(msgspec.Struct, frozen=True, tag="value"):
    """A variable somebody waits for has its value."""

    variable: str
    text: str
    finish: Finish | None = None  # None: it was given


class Failed(msgspec.Struct, frozen=True):
    """A variable somebody waits for will have no value."""

    variable: str
    error: Exception


Event = Said | Value | Failed


class Usage(msgspec.Struct):
    """Tokens of all calls of a graph."""

    prompt: int = 0
    cached: int = 0  # of these, not computed again
    generated: int = 0


class Runner:
    """Runs graphs on one engine. Its settings are what all requests of a graph have in common."""

    def __init__(self, engine: Engine, generate: Generate | None = None, *, deduces: bool = True) -> None:
        self.engine = engine
        self.generate = generate or engine.generate
        self.deduces = deduces
        self.static = StaticPrefixes()

    async def run(
        self, graph: Graph, *, usage: Usage | None = None, like: Request | None = None, generate: Generate | None = None
    ) -> AsyncGenerator[Event, None]:
        """Events of the variables in `graph.get`, each ending in a `Value` or a `Failed`. Left early, all of it stops.

        `like`: what every request has beside its prompt and sampling (user, adapter, priority, ...). Raises
        `UsageError` for a graph that is none.
        """
        run = _Run(self, graph, usage or Usage(), like or Request(id="", prompt=[]), generate or self.generate)
        try:
            for name in graph.get:
                if name in graph.values:
                    yield Value(name, graph.values[name])
            run.start(run.manager.ready())
            while not run.manager.done or not run.events.empty():
                yield await run.events.get()
        finally:
            await run.stop()


class _Run:
    def __init__(self, runner: Runner, graph: Graph, usage: Usage, like: Request, generate: Generate) -> None:
        for call in graph.calls:
            for transforms in call.transforms.values():
                check(transforms)
        self.runner = runner
        self.graph = graph
        self.usage = usage
        self.like = like
        self.generate = generate
        self.manager = Manager(uuid.uuid4().hex, plan(graph), monotonic(), deduces=runner.deduces)
        self.values = dict(graph.values)
        self.written: dict[str, str] = {}  # what the model wrote, before transforms
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.tasks: set[asyncio.Task[None]] = set()

    def start(self, ready: list[Task]) -> None:
        for task in ready:
            running = asyncio.ensure_future(self._chain(task))
            self.tasks.add(running)
            running.add_done_callback(self.tasks.discard)

    async def stop(self) -> None:
        tasks = list(self.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _chain(self, task: Task) -> None:
        name = task.chain.output
        try:
            finish = await self._generate(task)
        except Exception as error:  # each chain's own: the others go on
            for lost in self.manager.failed(name):
                if lost in self.graph.get:
                    self.events.put_nowait(Failed(lost, error))
            return
        ready = self.manager.resolved(name)
        if name in self.graph.get:
            self.events.put_nowait(Value(name, self.values[name], finish))
        self.start(ready)

    async def _generate(self, task: Task) -> Finish:
        chain, call = task.chain, self.graph.calls[task.chain.call]
        prompt, prefixes = await self._prompt(task)
        work: Work = msgspec.structs.replace(task.work, prefixes=prefixes)
        request = msgspec.structs.replace(
            self.like, id=f"{work.app}-{chain.number}", prompt=prompt, sampling=call.sampling, work=work
        )
        self.usage.prompt += len(prompt)
        parts: list[str] = []
        finish: Finish | None = None
        streamed = self.graph.get.get(chain.output) in STREAMED
        deltas = self.generate(request)
        try:
            async for delta in deltas:
                self.usage.cached += delta.cached
                self.usage.generated += len(delta.tokens)
                if delta.finish in ("error", "abort"):
                    raise Unavailable(delta.error or "The engine gave a call up.", "Send the graph again.")
                if delta.text:
                    parts.append(delta.text)
                    if streamed:
                        self.events.put_nowait(Said(chain.output, delta.text))
                finish = delta.finish or finish
        finally:
            await deltas.aclose()  # type: ignore[attr-defined]
        text = self.written[chain.output] = "".join(parts)
        (place,) = [p for p in _outputs(call.template) if variable(call, p) == chain.output]
        self.values[chain.output] = await self._transformed(call.transforms.get(place.name, ()), text)
        return finish or "stop"

    async def _transformed(self, transforms: tuple[Transform, ...], text: str) -> str:
        return await asyncio.to_thread(apply, transforms, text) if transforms else text

    async def _prompt(self, task: Task) -> tuple[list[int], tuple[tuple[str, int], ...]]:
        """A chain's prompt, and its beginnings.

        Every piece is turned into tokens by itself: equal pieces give equal tokens wherever they stand. What is filled
        in is plain text, whatever control tokens it spells.
        """
        call = self.graph.calls[task.chain.call]
        tokens = self.runner.engine.tokens
        texts: list[tuple[str, bool]] = []
        for piece in task.chain.pieces:
            if isinstance(piece, Text):
                texts.append((piece.text, True))
            elif isinstance(piece, Output):
                texts.append((self.written[variable(call, piece)], False))
            else:
                value = self.values[variable(call, piece)]
                texts.append((await self._transformed(call.transforms.get(piece.name, ()), value), False))
        if sum(len(text) for text, _ in texts) < WIDE:
            pieces = encoded(tokens, texts)
        else:
            pieces = await asyncio.to_thread(encoded, tokens, texts)
        salt = f"{self.like.adapter}\0{self.like.cache_salt}"
        prefixes = boundaries(pieces, salt)
        shared = self.runner.static.seen("".join(text for text, _ in texts))
        if shared:
            static = boundaries([tokens.encode(shared), []], salt)
            prefixes = tuple(sorted((*prefixes, *static), key=lambda prefix: prefix[1]))
        return [token for piece in pieces for token in piece], prefixes


def _outputs(template: str) -> list[Output]:
    return [piece for piece in parse(template) if isinstance(piece, Output)]


def encoded(tokens: Tokens, texts: list[tuple[str, bool]]) -> list[list[int]]:
    """The tokens of each (text, whether control tokens in it count); what begins a text stands at the first only."""
    begin = tokens.encode("")
    pieces = []
    for at, (text, special) in enumerate(texts):
        piece = tokens.encode(text, special)
        if special and begin and at and piece[: len(begin)] == begin:
            piece = piece[len(begin) :]
        elif not special and not at:
            piece = begin + piece
        pieces.append(piece)
    return pieces
