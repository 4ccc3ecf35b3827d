"""`nubes plan`: what to buy."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from nubes.cli import llms, output
from nubes.cli.groups import Group
from nubes.cli.options import Json
from nubes.cli.progress import Html, progress_bar, write_page
from nubes.kernel.errors import UsageError

group = typer.Typer(
    cls=Group, help="Plans: the cheapest way to serve a workload within an objective.", no_args_is_help=True
)


@group.callback()
def root() -> None:
    """Plans: the cheapest way to serve a workload within an objective."""


@group.command("llm")
def llm(
    trace: Annotated[str, typer.Option(help="Requests: a trace, a generator or a recording.")],
    slo: Annotated[str, typer.Option(help='What a request may take: "ttft=500ms,tpot=50ms".')],
    model: Annotated[str, typer.Option(help="A published model: llama-3-8b, llama-2-70b, ...")] = "llama-3-8b",
    gpus: Annotated[str, typer.Option(help="Devices, with commas between.")] = "a100,h100,a40",
    rate: Annotated[
        str, typer.Option(help="Requests a second; several with commas between.", show_default="the trace's own")
    ] = "",
    attainment: Annotated[float, typer.Option(help="Share of requests that shall be in time.")] = 0.9,
    batching: Annotated[
        str, typer.Option(help="Batching policies, with commas between.", show_default="sarathi's budgets, and vllm")
    ] = "",
    tensor: Annotated[str, typer.Option(help="Degrees of tensor parallelism.")] = "1,2,4,8",
    pipeline: Annotated[str, typer.Option(help="Pipeline stages.")] = "1,2,4",
    devices: Annotated[int, typer.Option(min=1, help="At most so many devices in all.")] = 64,
    prices: Annotated[
        str, typer.Option(help='Dollars an hour of a device: "a100=2.5,h100=4".', show_default="list prices")
    ] = "",
    until: Annotated[str, typer.Option(help="Only the first part of the trace, at its new rate.")] = "5m",
    html: Html = None,
    json: Json = False,
) -> None:
    """Search hardware, parallelism, batching and replicas for the cheapest that keeps an objective."""
    from nubes.kernel.policy import split
    from nubes.replay.llm import slo as objective
    from nubes.replay.llm.plan import BATCHING, plan_llm

    wanted, paid = objective(slo), _prices(prices)
    plans = []
    for each in _rates(rate):
        workload = llms.workload(trace, each, until)
        with progress_bar() as progress:
            plans.append(
                plan_llm(
                    workload, model, wanted, gpus=gpus.split(","), tensor=llms.numbers(tensor, "--tensor"),
                    pipeline=llms.numbers(pipeline, "--pipeline"), batching=split(batching) or BATCHING,
                    attainment=attainment, devices=devices, prices=paid, progress=progress,
                )
            )  # fmt: skip
    if html is not None:
        from nubes.replay.llm.plan_shown import html as page

        write_page(html, page(plans))
    if json:
        output.as_json([plan.to_dict() for plan in plans])
    else:
        from nubes.replay.llm.plan_shown import table

        for plan in plans:
            output.console().print(table(plan))
        if html is not None:
            print(f"The page is {html}.")
    if not all(plan.met for plan in plans):
        raise typer.Exit(1)


def _rates(text: str) -> list[float | None]:
    try:
        return [float(part) for part in text.split(",")] if text else [None]
    except ValueError:
        raise UsageError(f"--rate {text} is no number.", "Write requests a second, or several: 2,4,8.") from None


def _prices(text: str) -> dict[str, float]:
    found: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            raise UsageError(f"{part!r} is no price.", "Write dollars an hour of a device: a100=2.5.") from None
    return found
