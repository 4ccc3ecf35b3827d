"""Replays of LLM requests."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nubes.cli import output
from nubes.cli.progress import progress_bar, write_page
from nubes.kernel.errors import UsageError

if TYPE_CHECKING:
    from nubes.replay.llm import Configuration

PANEL = "LLM endpoints"


def _option(help: str, **more: Any) -> Any:
    return typer.Option(help=help, rich_help_panel=PANEL, **more)


Llm = Annotated[
    str,
    _option(
        'Serve LLM requests with these step models, commas between: "lin(llama-3-8b,gpu=a100,tp=1)", "cpu(FIT)", or '
        '"recorded" for the machine of a recording.',
        metavar="MODEL",
    ),
]
Batching = Annotated[str, _option("Batching policies to compare, with commas between.")]
Ordering = Annotated[str, _option("The same for the order of the queue.")]
Preemption = Annotated[str, _option("The same for who gives way.")]
Retention = Annotated[str, _option("The same for what KV is kept.")]
Speculation = Annotated[str, _option("The same for guessing tokens ahead.")]
Hits = Annotated[
    str,
    _option(
        "How likely the first, second, ... guess of a token holds: 0.6,0.1.",
        metavar="SHARES", show_default="as recorded, or 0.5,0.2,0.08",
    ),
]  # fmt: skip
Instances = Annotated[str, _option("How many engines; several numbers with commas between.")]
BlockSize = Annotated[str, _option("Tokens of a KV block; several numbers with commas between.")]
Slo = Annotated[str, _option('What a request may take: "ttft=500ms,tpot=50ms".', metavar="SLO")]
Rate = Annotated[float | None, _option("Requests a second: the trace's time is stretched.")]
Until = Annotated[str | None, _option('Only the first part of the trace: "10m".', metavar="TIME")]
Price = Annotated[float | None, _option("Dollars an hour of one device.", show_default="its list price")]


def recorded(trace: str) -> str:
    """What serves a trace without a model named: the machine that it was recorded on."""
    from nubes.llm.engine.recording import is_recording

    return "recorded" if trace and is_recording(Path(trace).expanduser()) else ""


def chosen(
    llm: str, batching: str, ordering: str, preemption: str, retention: str, speculation: str, hits: str,
    instances: str, block_size: str, price: float | None,
) -> list[Configuration]:  # fmt: skip
    from nubes.kernel.policy import split
    from nubes.replay.llm import configurations

    return configurations(
        split(llm), split(batching) or [""], split(ordering) or [""], split(preemption) or [""],
        split(retention) or [""], numbers(instances, "--instances"), numbers(block_size, "--block-size"),
        dollars_per_hour=price, speculation=split(speculation) or [""], hits=shares(hits, "--hits"),
    )  # fmt: skip


def replay(
    trace: str, configurations: list[Configuration], objective: str, rate: float | None, until: str | None, seeds: int,
    html: Path | None, json: bool,
) -> None:  # fmt: skip
    """Serves the trace with every configuration and shows what came of it."""
    from nubes.replay.llm import replay_llm, slo

    wanted = slo(objective) if objective else None
    with progress_bar() as progress:
        report = replay_llm(
            workload(trace, rate, until, seeds), configurations, slo=wanted, seeds=range(seeds), progress=progress
        )
    if html is not None:
        from nubes.replay.llm.page import html as page

        write_page(html, page(report))
    if json:
        output.as_json(report.to_dict())
        return
    from nubes.replay.llm.terminal import table

    output.console().print(table(report))
    if html is not None:
        print(f"The page is {html}.")


def workload(trace: str, rate: float | None, until: str | None, seeds: int = 1) -> Any:
    """A recording, a workload, or, for several seeds, what makes one from a seed."""
    from nubes.llm.engine.recording import is_recording, read

    if not trace:
        raise UsageError("No trace is named.", "Name one: azure-llm-2023, chat-like(rate=2), or a recording's file.")
    if is_recording(Path(trace).expanduser()) and rate is None and until is None:
        return read(trace)
    make = functools.partial(_made, trace, rate, until)
    return make(0) if seeds == 1 else make


def _made(trace: str, rate: float | None, until: str | None, seed: int) -> Any:
    """The first part of a trace, at a rate: `until` is the time that it takes at that rate."""
    from dataclasses import replace

    from nubes.kernel.units import seconds, show_seconds
    from nubes.workloads.llm import load_llm

    made = load_llm(trace, seed=seed)
    said = []
    if until is not None:
        long_s = seconds(until, "until")
        count = made.requests if rate is None else int(rate * long_s)
        if rate is None:
            made = made.until(long_s)
        elif count < made.requests:
            made = made.until(float(made.arrival_s[count]))
        said.append(f"the first {show_seconds(long_s)}")
    if rate is not None:
        made = made.scaled(rate)
        said.append(f"at {rate:g} a second")
    return replace(made, source=f"{made.source} Of these {' '.join(said)}.") if said else made


def shares(text: str, flag: str) -> tuple[tuple[float, ...], ...]:
    """By rank, the same at every depth."""
    try:
        return (tuple(float(part) for part in text.split(",")),) if text else ()
    except ValueError:
        raise UsageError(f"{flag} {text} are no shares.", "Write numbers from 0 to 1: 0.6,0.1.") from None


def numbers(text: str, flag: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{flag} {text} is no whole number.", "Write a number, or several: 1,2,4.") from None
