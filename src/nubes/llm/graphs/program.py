"""How programs are written: semantic functions, called in a session, give variables; only `get` waits."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Protocol

from nubes.kernel.errors import Unavailable, UsageError
from nubes.llm.graphs.remote import Remote
from nubes.llm.graphs.runner import Event, Failed, Runner, Said
from nubes.llm.graphs.spec import LATENCY, THROUGHPUT, TTFT, Call, Graph, Transform, split
from nubes.llm.graphs.template import Input, Output, parse
from nubes.llm.live import Engine
from nubes.llm.spec import Criterion, Sampling

_current: ContextVar[Session | None] = ContextVar("session", default=None)


class Runs(Protocol):
    """What a session sends its graphs to."""

    def run(self, graph: Graph) -> AsyncGenerator[Event, None]: ...


class Variable:
    """A text by name that is there, or will be."""

    def __init__(self, session: Session, name: str) -> None:
        self.name = name
        self.session = session
        self.criterion: Criterion | None = None
        self._value: asyncio.Future[str] | None = None
        self._parts: asyncio.Queue[str | None] | None = None
        self._said = False  # whether a part of it came

    async def get(self, criterion: Criterion = LATENCY) -> str:
        """Waits for the value. `criterion` says how it is wanted, and so all that it is made from.

        Raises what kept it from being made: `Unavailable`, `ContextTooLong`, `TransformFailed`, ...
        """
        return await self.session._wanted(self, criterion)

    async def stream(self, criterion: Criterion = TTFT) -> AsyncIterator[str]:
        """The text as it is written; without transforms, and in one piece if it was asked for before."""
        if self._value is None:
            self._parts = asyncio.Queue()  # before it is asked for, so that nothing is missed
        waiting = asyncio.ensure_future(self.session._wanted(self, criterion))
        try:
            if self._parts is not None:
                while (part := await self._parts.get()) is not None:
                    yield part
                await waiting
            else:
                yield await waiting
        finally:
            waiting.cancel()

    def __repr__(self) -> str:
        return f"<Variable {self.name}>"


class SemanticFunction:
    """A prompt template as a function: values or variables in, a variable out, or a tuple of them."""

    def __init__(self, template: str, transforms: Mapping[str, Sequence[Transform]] = {}, **sampling: Any) -> None:
        pieces = parse(template)
        self.template = template
        self.inputs = list(dict.fromkeys(piece.name for piece in pieces if isinstance(piece, Input)))
        self.outputs = [piece.name for piece in pieces if isinstance(piece, Output)]
        self.transforms = {name: tuple(of) for name, of in transforms.items()}
        self.sampling = Sampling(**sampling)
        split((self._call({}, {}),))  # tells of transforms for placeholders that are not there

    def _call(self, inputs: dict[str, str], outputs: dict[str, str]) -> Call:
        return Call(
            template=self.template, inputs=inputs, outputs=outputs, transforms=self.transforms, sampling=self.sampling
        )

    def __call__(self, *values: str | Variable, **named: str | Variable) -> Any:
        """In the order of the placeholders, or by their names. Raises `UsageError` outside of a session."""
        session = _current.get()
        if session is None:
            raise UsageError("A semantic function was called outside of a session.", "Use: async with Session(engine):")
        given = dict(zip(self.inputs, values, strict=False)) | named
        if len(values) + len(named) != len(self.inputs) or set(given) != set(self.inputs):
            names = ", ".join(self.inputs) or "nothing"
            raise UsageError("The inputs do not match the template.", f"Give each of these once: {names}.")
        inputs = {name: session._named(value) for name, value in given.items()}
        made = [session._new(name) for name in self.outputs]
        session._add(self._call(inputs, {name: of.name for name, of in zip(self.outputs, made, strict=True)}), made)
        return made[0] if len(made) == 1 else tuple(made)


def semantic_function(
    template: str = "", *, transforms: Mapping[str, Sequence[Transform]] = {}, **sampling: Any
) -> Callable[[Callable[..., Any]], SemanticFunction]:
    """Makes a function of a template: `template`, or the docstring of what it decorates. `sampling`: of `Sampling`."""

    def make(function: Callable[..., Any]) -> SemanticFunction:
        text = template or inspect.getdoc(function) or ""
        made = SemanticFunction(text, transforms, **sampling)
        named = list(inspect.signature(function).parameters)
        if named != made.inputs and sorted(named) == sorted(made.inputs):
            made.inputs = named
        elif named != made.inputs:
            raise UsageError(
                f"{function.__name__} takes {', '.join(named) or 'nothing'}, its template "
                f"{', '.join(made.inputs) or 'nothing'}.", "Name the parameters after the template's inputs.",
            )  # fmt: skip
        return made

    return make


class Session:
    """Where calls are gathered. What is called before the first `get` goes to the service as one graph.

    async with Session(engine) as session: ...
    async with Session(url="http://localhost:8080", model="smollm2-135m", token="...") as session: ...
    """

    def __init__(
        self, engine: Engine | None = None, *, url: str = "", model: str = "", token: str = "",
        service: Runs | None = None,
    ) -> None:  # fmt: skip
        if (engine is not None) + bool(url) + (service is not None) != 1:
            raise UsageError("A session needs one service.", "Give it an engine, or a URL.")
        self._service: Runs = service or (Runner(engine) if engine is not None else Remote(url, model, token))
        self._values: dict[str, Variable] = {}
        self._calls: list[Call] = []
        self._made: dict[str, Variable] = {}  # by the calls that were not sent yet
        self._tasks: set[asyncio.Task[None]] = set()
        self._count = 0

    async def __aenter__(self) -> Session:
        self._token = _current.set(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        _current.reset(self._token)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def variable(self, text: str) -> Variable:
        """A variable with a value: where several calls have the same text, it is sent and known as one."""
        made = self._new("value")
        made._value = _future()
        made._value.set_result(text)
        return made

    # -- for variables and functions ------------------------------------------------------------------------------

    def _new(self, name: str) -> Variable:
        self._count += 1
        made = Variable(self, f"{name}_{self._count}")
        self._values[made.name] = made
        return made

    def _named(self, value: str | Variable) -> str:
        if isinstance(value, Variable):
            if value.session is not self:
                raise UsageError(f"{value!r} belongs to another session.", "Wait for it there and give its text.")
            return value.name
        return self.variable(value).name

    def _add(self, call: Call, made: Sequence[Variable]) -> None:
        self._calls.append(call)
        self._made |= {of.name: of for of in made}

    async def _wanted(self, variable: Variable, criterion: Criterion) -> str:
        if variable._value is None:
            variable._value = _future()
            variable.criterion = criterion
            await asyncio.sleep(0)  # whoever asks together is told of together
            self._flush()
        return await asyncio.shield(variable._value)

    def _flush(self) -> None:
        """Sends what was called since the last time and is needed by now; the rest stays until somebody asks for it."""
        wanted = {name: of for name, of in self._made.items() if of._value is not None}
        if not wanted:
            return
        calls = self._needed(wanted)
        self._calls = [call for call in self._calls if call not in calls]
        for call in calls:
            for name in call.outputs.values():
                made = self._made.pop(name)
                if made._value is None:  # needed on the way; whoever asks for it later has it, too
                    made._value = _future()
                    wanted[name] = made
        task = asyncio.ensure_future(self._send(calls, wanted))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _needed(self, wanted: Mapping[str, Variable]) -> list[Call]:
        by_output = {name: call for call in self._calls for name in call.outputs.values()}
        needed: dict[int, Call] = {}
        stack = list(wanted)
        while stack:
            call = by_output.get(stack.pop())
            if call is not None and id(call) not in needed:
                needed[id(call)] = call
                stack += call.inputs.values()
        return [call for call in self._calls if id(call) in needed]

    async def _send(self, calls: Sequence[Call], wanted: Mapping[str, Variable]) -> None:
        made = {name for call in calls for name in call.outputs.values()}
        lost: Exception = Unavailable("The session was closed.", "Wait for what is needed before it ends.")
        try:
            values = {}
            for name in {name for call in calls for name in call.inputs.values()} - made:
                future = self._values[name]._value
                assert future is not None  # given, or sent before
                values[name] = await asyncio.shield(future)  # of a graph that was sent before
            get: dict[str, Criterion] = {name: of.criterion or THROUGHPUT for name, of in wanted.items()}
            async for event in self._service.run(Graph(calls=tuple(calls), get=get, values=values)):
                _heard(wanted[event.variable], event)
            lost = Unavailable("The service ended its answer early.", "Send the graph again.")
        except Exception as error:
            lost = error
        finally:
            for of in wanted.values():
                if of._value is not None and not of._value.done():
                    _heard(of, Failed(of.name, lost))


def _future() -> asyncio.Future[str]:
    """One whose error nobody has to look at."""
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future


def _heard(variable: Variable, event: Event) -> None:
    """What came of a variable."""
    future, parts = variable._value, variable._parts
    assert future is not None
    if isinstance(event, Said):
        if parts is not None:
            variable._said = True
            parts.put_nowait(event.text)
        return
    if not future.done():
        if isinstance(event, Failed):
            future.set_exception(event.error)
        else:
            future.set_result(event.text)
            if parts is not None and not variable._said:
                parts.put_nowait(event.text)
    if parts is not None:
        parts.put_nowait(None)
