"""POST /v1/graphs: calls that feed each other, in one request."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from msgspec import field

from nubes.llm.api import sse, turns
from nubes.llm.api.endpoint import Answer
from nubes.llm.api.fields import GENERATE, Generate, Positive, Stops
from nubes.llm.api.problems import Problem, invalid, of_error
from nubes.llm.api.sampling import grammar, priority, sampling
from nubes.llm.api.service import Call, Model, Service, new_id
from nubes.llm.graphs.runner import Failed, Runner, Said, Usage
from nubes.llm.graphs.spec import CALLS, Graph, Transform
from nubes.llm.graphs.spec import Call as Made
from nubes.llm.graphs.transforms import TransformFailed
from nubes.llm.spec import Criterion, Request

DEFAULT_TOKENS = 256  # of an output


class GraphCall(Generate, kw_only=True):
    """One use of a template, with sampling fields of its own."""

    template: str
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    transforms: dict[str, list[Transform]] = field(default_factory=dict)
    max_tokens: Positive | None = None
    stop: str | Stops | None = None


class Graphs(Generate, kw_only=True):
    """The body. `get`: variable -> latency, throughput, ttft or tpot."""

    unsupported = GENERATE

    calls: list[GraphCall]
    get: dict[str, Criterion]
    values: dict[str, str] = field(default_factory=dict)


async def answer(service: Service, call: Call, asked: Graphs) -> Answer:
    """A `graph` with the awaited values, or events for each as it comes."""
    model = service.find(asked.model)
    if len(asked.calls) > CALLS:
        raise invalid("calls", f"The graph has {len(asked.calls)} calls; {CALLS} may come at once.")
    graph = Graph(calls=tuple(_call(one, model) for one in asked.calls), get=asked.get, values=asked.values)
    like = Request(
        id="", prompt=[], adapter=model.adapter, user=call.who(asked.user or asked.safety_identifier),
        priority=priority(asked), session=asked.session_id or "", cache_salt=asked.cache_salt or "",
    )  # fmt: skip
    runner: Runner = service.runners.setdefault(model.base, Runner(model.engine))
    usage = Usage()
    events = runner.run(graph, usage=usage, like=like, generate=lambda request: service.generate(model, request, call))
    head = {"id": new_id("graph-"), "model": asked.model or model.name}
    if asked.stream:
        return _stream(events, usage, head, call)
    values: dict[str, Any] = {}
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Failed):
                raise _problem(event.error, call)
            if not isinstance(event, Said):
                values[event.variable] = {"text": event.text, "finish_reason": event.finish}
    return sse.encode({**head, "object": "graph", "values": values, "usage": _usage(usage)})


def _call(asked: GraphCall, model: Model) -> Made:
    how = sampling(
        asked, model.engine, max_tokens=asked.max_tokens or DEFAULT_TOKENS, stop=asked.stop, logprobs=None,
        grammar=grammar(asked),
    )  # fmt: skip
    transforms = {name: tuple(of) for name, of in asked.transforms.items()}
    return Made(
        template=asked.template, inputs=asked.inputs, outputs=asked.outputs, transforms=transforms, sampling=how
    )


async def _stream(
    events: AsyncGenerator[Any, None], usage: Usage, head: dict[str, Any], call: Call
) -> AsyncGenerator[bytes, None]:
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Failed):
                problem = _problem(event.error, call)
                error = {"message": problem.message, "type": problem.type, "code": problem.code}
                told = {"object": "graph.error", "error": {**error, "status": problem.status}}
            elif isinstance(event, Said):
                told = {"object": "graph.delta", "text": event.text}
            else:
                told = {"object": "graph.value", "text": event.text, "finish_reason": event.finish}
            yield sse.data({**head, "variable": event.variable, **told})
    yield sse.data({**head, "object": "graph.usage", "usage": _usage(usage)})
    yield sse.DONE


def _usage(usage: Usage) -> Any:
    return turns.usage(usage.prompt, usage.generated, usage.cached)


def _problem(error: Exception, call: Call) -> Problem:
    if isinstance(error, TransformFailed):  # the model's doing, not the engine's
        return Problem(422, str(error), code="transform_failed")
    return of_error(error, call.request_id)
