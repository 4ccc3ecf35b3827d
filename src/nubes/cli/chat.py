"""`nubes chat`, `nubes llm serve` and `nubes llm convert`: an LLM in this terminal, behind a port, in another file."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from nubes.cli.groups import Group
from nubes.kernel.errors import UsageError

if TYPE_CHECKING:
    from nubes.drivers.local.llm_fleet import EngineFleet
    from nubes.llm.engine.local import LocalEngine

Model = Annotated[str, typer.Argument(help="A name like smollm2-135m, a GGUF file, or a Hugging Face folder.")]
Format = Annotated[str, typer.Option(help="Of the weights: fp32, bf16, int8 or int4.")]

group = typer.Typer(cls=Group, no_args_is_help=True, help="Large language models.")


def chat(
    model: Model = "smollm2-135m",
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="Ask this, print the answer, and leave.")] = "",
    system: Annotated[str, typer.Option(help="What the model is told first.")] = "",
    temperature: Annotated[float, typer.Option(min=0.0, help="0: always the likeliest token.")] = 0.7,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 512,
    format: Format = "int8",
) -> None:
    """Chat with a model in the terminal. It runs in this process; no cloud is needed."""
    from nubes.llm.engine.opening import open_engine

    engine = open_engine(model, format=format)
    settings = {"temperature": temperature, "max_tokens": max_tokens}
    messages = [{"role": "system", "content": system}] if system else []
    if prompt or not sys.stdin.isatty():
        messages.append({"role": "user", "content": prompt or sys.stdin.read()})
        asyncio.run(_answer(engine, messages, settings))
        return
    print(f"{engine.name}. An empty line, or Ctrl-D, ends it.")
    while True:
        try:
            said = input("> ").strip()
        except EOFError:
            print()
            return
        if not said:
            return
        messages.append({"role": "user", "content": said})
        text = asyncio.run(_answer(engine, messages, settings))
        messages.append({"role": "assistant", "content": text})


async def _answer(engine: Any, messages: list[dict[str, str]], settings: dict[str, Any]) -> str:
    """Prints the answer as it comes, and on a terminal how fast it came."""
    from nubes.llm.spec import Request, Sampling

    tokens = engine.tokens.encode(engine.tokens.chat(messages))
    begun, first, count, text = time.monotonic(), 0.0, 0, ""
    async for delta in engine.generate(Request(id="chat", prompt=tokens, sampling=Sampling(**settings))):
        first = first or time.monotonic()
        count += len(delta.tokens)
        text += delta.text
        print(delta.text, end="", flush=True)
        if delta.error:
            from nubes.kernel.errors import NubesError

            raise NubesError(delta.error)
    print()
    if sys.stderr.isatty() and count > 1:
        rate = (count - 1) / (time.monotonic() - first)
        print(f"[{count} tokens, first after {first - begun:.2f} s, then {rate:.0f} a second]", file=sys.stderr)
    return text


def _named(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise UsageError(f"{text!r} names no adapter.", "Write NAME=FOLDER.")
    return name, path


@group.command()
def convert(
    model: Model,
    folder: Annotated[Path, typer.Argument(help="Where the converted model goes; its name from then on.")],
) -> None:
    """Write a model in the format that loads as fast as the disk reads, in fp32."""
    from nubes.llm.checkpoint import load
    from nubes.llm.checkpoint.fast import convert as write

    written = write(load(model), folder)
    print(f"{written / 1e6:,.0f} MB in {folder}. Next: `nubes chat {folder}`.")


@group.command()
def serve(
    model: Model = "smollm2-135m",
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free.")] = 8000,
    format: Format = "int8",
    kv_memory: Annotated[str, typer.Option(help="For the KV cache.")] = "1GiB",
    batching: Annotated[str, typer.Option(help='The batching policy, e.g. "sarathi(budget=256)".')] = "",
    ordering: Annotated[str, typer.Option(help="The ordering policy.")] = "",
    preemption: Annotated[str, typer.Option(help="The preemption policy.")] = "",
    retention: Annotated[str, typer.Option(help="The retention policy.")] = "",
    speculation: Annotated[str, typer.Option(help='The speculation policy, e.g. "specinfer".')] = "",
    restoration: Annotated[str, typer.Option(help='How KV that gave way comes back, e.g. "hcache".')] = "",
    fusion: Annotated[str, typer.Option(help='How `documents` of prompts are put together, e.g. "cacheblend".')] = "",
    adapter: Annotated[list[str], typer.Option(help="A LoRA adapter: NAME=FOLDER. May be given again.")] = (),  # type: ignore[assignment]
    replicas: Annotated[
        int, typer.Option(min=1, help="Engine processes that answer as one and survive each other.")
    ] = 1,
    prefill_replicas: Annotated[int, typer.Option(min=0, help="So many of them only compute prompts.")] = 0,
    routing: Annotated[str, typer.Option(help="With replicas: which one gets a request.")] = "",
    migration: Annotated[str, typer.Option(help='With replicas: who moves while it runs, e.g. "llumnix".')] = "",
    scaling: Annotated[str, typer.Option(help='How many replicas there are, e.g. "freeness(most=4)".')] = "",
    max_waiting: Annotated[int, typer.Option(min=1, help="Requests that may wait; more get a 503.")] = 1024,
    api_key: Annotated[str, typer.Option(envvar="NUBES_API_KEY", help="Ask for this key.")] = "",
    vllm_metrics: Annotated[bool, typer.Option(help="Metrics under vLLM's names as well.")] = False,
    threads: Annotated[int, typer.Option(min=0, help="Of each replica. 0: all cores, shared out.")] = 0,
    record: Annotated[Path | None, typer.Option(help="Write all steps and answers to a file, for replays.")] = None,
) -> None:
    """Serve one model under OpenAI's and Anthropic's APIs, without a cloud around it."""
    from nubes.gateway.server import bind
    from nubes.kernel.units import size_bytes
    from nubes.llm import declaring
    from nubes.llm.engine import opening
    from nubes.llm.spec import LLMSpec

    sock = bind(host, port)
    spec = LLMSpec(
        model=model, format=format, threads=threads, kv_memory_bytes=size_bytes(kv_memory, "kv_memory"),
        batching=batching, ordering=ordering, preemption=preemption, retention=retention, speculation=speculation,
        restoration=restoration, fusion=fusion,
        adapters=dict(_named(text) for text in adapter), replicas=replicas, prefill_replicas=prefill_replicas,
        routing=routing, migration=migration, scaling=scaling, max_waiting=max_waiting, vllm_metrics=vllm_metrics,
    )  # fmt: skip
    declaring.check(spec)
    if record is not None and declaring.is_fleet(spec):
        raise UsageError("What several engines do is not recorded.", "Leave out --record, or --replicas.")
    loaded = opening.load_model(spec)
    spec = msgspec.structs.replace(spec, name=loaded.checkpoint.name)
    keys = {api_key: ""} if api_key else None
    if declaring.is_fleet(spec):
        from nubes.drivers.local.llm_replicas import open_fleet

        asyncio.run(_serve(open_fleet(spec, loaded), sock, keys, vllm_metrics))
        return
    engine = opening.serve(spec, loaded)
    if record is not None:
        from nubes.llm.engine.recording import record as begin

        begin(engine, record)
    asyncio.run(_serve(engine, sock, keys, vllm_metrics))


async def _serve(
    engine: LocalEngine | EngineFleet, sock: socket.socket, keys: dict[str, str] | None, vllm_metrics: bool
) -> None:
    """Until it is interrupted."""
    import uvicorn

    from nubes.llm.api import app
    from nubes.llm.engine.local import LocalEngine

    if not isinstance(engine, LocalEngine):
        await engine.start()
    host, port = sock.getsockname()[:2]
    print(f"{engine.name} answers at http://{host}:{port}/v1", flush=True)
    served = app({engine.name: engine}, keys=keys, vllm_metrics=vllm_metrics)
    config = uvicorn.Config(served, log_level="error", access_log=False, lifespan="off")
    await uvicorn.Server(config).serve([sock])
