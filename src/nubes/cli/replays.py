"""`nubes replay`, `why`, `try`, `papers` and `reproduce`: asking what was, and what would have been."""

from __future__ import annotations

import functools
from math import inf
from typing import Annotated, Any

import msgspec
import typer

from nubes import ids
from nubes.cli import llms, output
from nubes.cli.options import Data, Json, folder
from nubes.cli.progress import Html, progress_bar, write_page
from nubes.kernel.errors import NotFound, UsageError
from nubes.kernel.units import size_bytes

Trace = Annotated[
    str,
    typer.Argument(
        metavar="[TRACE]",
        help="A folder, a name below NUBES_TRACES, or a generator. Left out: what this nubes recorded.",
    ),
]
Seeds = Annotated[int, typer.Option(min=1, help="How many times, with other random draws, what a trace leaves open.")]


FUNCTION_OPTIONS = (
    "keep_alive", "queueing", "cold_start", "placement", "balancing", "hedging", "machines", "cpu", "memory",
)  # fmt: skip
LLM_OPTIONS = (
    "batching", "ordering", "preemption", "retention", "speculation", "hits", "instances", "block_size", "slo", "rate",
    "until", "price",
)  # fmt: skip


def _workload(trace: str, data: str | None, seeds: int) -> Any:
    """A recording, a workload, or, for several seeds, what makes one from a seed."""
    from nubes import workloads
    from nubes.workloads.recording import Recording

    where = folder(data)
    name = trace or str(where)
    if not trace and not (where / "log").is_dir():
        raise UsageError(f"Nothing was recorded in {where}.", "Name a trace, or run something first.")
    first = workloads.load(name)
    return first if seeds == 1 or isinstance(first, Recording) else functools.partial(workloads.load, name)


def replay(
    ctx: typer.Context,
    trace: Trace = "",
    keep_alive: Annotated[
        str, typer.Option(help="Policies to compare, with commas between.")
    ] = "fixed-window,hybrid-histogram,cidre",
    queueing: Annotated[str, typer.Option(help="The same for queueing.")] = "",
    cold_start: Annotated[str, typer.Option(help="The same for cold starts.")] = "",
    placement: Annotated[str, typer.Option(help="The same for placement.")] = "",
    balancing: Annotated[str, typer.Option(help="The same for which instance takes a call.")] = "",
    hedging: Annotated[str, typer.Option(help="The same for copies of late calls.")] = "",
    machines: Annotated[str, typer.Option(help="Numbers of machines to compare, with commas between.")] = "1",
    cpu: Annotated[
        float | None, typer.Option(help="CPU cores that a machine gives out.", show_default="unlimited")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help='Memory that a machine gives out, e.g. "64GiB".', show_default="unlimited")
    ] = None,
    llm: llms.Llm = "",
    batching: llms.Batching = "",
    ordering: llms.Ordering = "",
    preemption: llms.Preemption = "",
    retention: llms.Retention = "",
    speculation: llms.Speculation = "",
    hits: llms.Hits = "",
    instances: llms.Instances = "1",
    block_size: llms.BlockSize = "16",
    slo: llms.Slo = "",
    rate: llms.Rate = None,
    until: llms.Until = None,
    price: llms.Price = None,
    seeds: Seeds = 1,
    html: Html = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Replay a workload under other policies, in virtual time, and compare them."""
    llm = llm or llms.recorded(trace)
    _one_kind(ctx, bool(llm))
    if llm:
        chosen_llms = llms.chosen(
            llm, batching, ordering, preemption, retention, speculation, hits, instances, block_size, price
        )  # fmt: skip
        llms.replay(trace, chosen_llms, slo, rate, until, seeds, html, json)
        return
    from nubes.kernel.policy import split
    from nubes.replay import configurations
    from nubes.replay import replay as run

    chosen = configurations(
        split(keep_alive) or [""], split(queueing) or [""], split(cold_start) or [""],
        inf if cpu is None else cpu, inf if memory is None else size_bytes(memory, "memory"),
        split(placement) or [""], [_machines(number) for number in split(machines)],
        split(balancing) or [""], split(hedging) or [""],
    )  # fmt: skip
    workload = _workload(trace, data, seeds)
    with progress_bar() as progress:
        report = run(workload, chosen, seeds=range(seeds), progress=progress)
    if html is not None:
        from nubes.replay.page import html as page

        write_page(html, page(report))
    if json:
        output.as_json(report.to_dict())
        return
    from nubes.replay.terminal import table

    output.console().print(table(report))
    if html is not None:
        print(f"The page is {html}.")


def _machines(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise UsageError(f"{text!r} is no number of machines.", "Write one or more, e.g. --machines 1,4.")
    return int(text)


def _one_kind(ctx: typer.Context, llm: bool) -> None:
    """Options of functions and those of LLMs are not mixed."""
    others = FUNCTION_OPTIONS if llm else LLM_OPTIONS
    for name in others:
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            flag = f"--{name.replace('_', '-')}"
            hint = "Leave it out, or leave out --llm." if llm else "Name a step model with --llm."
            raise UsageError(f"{flag} is for replays of {'functions' if llm else 'LLMs'}.", hint)


def why(
    call: Annotated[str, typer.Argument(metavar="CALL", help="A call's id, like fc-1x9k2m4p7qr3t.")],
    data: Data = None,
    json: Json = False,
) -> None:
    """Explain a call: the chain of events, what each policy saw, what it chose and what lost."""
    from nubes.replay.why import why as explain

    number = ids.parse(call)
    where = folder(data)
    if not (where / "log").is_dir():
        raise UsageError(f"{where} holds no log.", "Name the data folder of a nubes that ran, with --data.")
    try:
        explanation = explain(where, number)
    except NotFound:
        raise NotFound(
            f"Call {call} is not in the log of {where}.", "`nubes call list` and `nubes logs --json` show ids."
        ) from None
    if json:
        output.as_json({**explanation.to_dict(), "call": call})
    else:
        output.console().print(explanation)


def try_policy(
    file: Annotated[str, typer.Argument(metavar="FILE[::NAME]", help="A Python file with a policy in it.")],
    seam: Annotated[str, typer.Option(help="keep-alive, queueing, cold-start or placement.")] = "keep-alive",
    trace: Annotated[list[str] | None, typer.Option(help="Workloads to try it on; may be repeated.")] = None,
    seeds: Seeds = 3,
    html: Html = None,
    json: Json = False,
) -> None:
    """Try your own policy against every published one on its seam."""
    from nubes.replay.trial import try_policy as run

    with progress_bar() as progress:
        trial = run(file, seam, trace or (), range(seeds), progress=progress)
    if html is not None:
        from nubes.replay.verdict import trial_html

        write_page(html, trial_html(trial))
    if json:
        output.as_json(trial.to_dict())
        return
    from nubes.replay.verdict import trial_table

    output.console().print(trial_table(trial))
    if html is not None:
        print(f"The page is {html}.")


def papers(json: Json = False) -> None:
    """The published systems in the box."""
    from nubes.papers import catalogue

    entries = catalogue()
    if json:
        output.as_json([msgspec.to_builtins(entry) for entry in entries])
        return
    words = {True: "holds", False: "does not hold", None: ""}
    output.table("", ("id", "venue", "seam", "mode", "claims", "title"), (
        (p.id, p.venue, p.seam, p.mode, words[p.holds], p.title) for p in entries
    ))  # fmt: skip
    print("Check one: `nubes reproduce ID`.")


def reproduce(
    id: Annotated[str, typer.Argument(metavar="ID", help="A published system, from `nubes papers`.")],
    seeds: Annotated[int, typer.Option(min=1, help="How many runs with other random draws.")] = 3,
    trace: Annotated[str | None, typer.Option(help="Another workload than the reproduction's own.")] = None,
    scale: Annotated[str, typer.Option(help="small (about a minute) or full (what the claim asks for).")] = "small",
    record: Annotated[bool, typer.Option("--record", help="Keep the results beside the code, for `papers`.")] = False,
    json: Json = False,
) -> None:
    """Check a published system's claims against the baseline of its own paper. Exit code 1 if one does not hold."""
    from nubes.papers import record as keep
    from nubes.papers import reproduce as run

    with progress_bar() as progress:
        results = run(id, seeds=seeds, trace=trace, scale=scale, progress=progress)
    if record:
        keep(results)
    if json:
        output.as_json([msgspec.to_builtins(result) for result in results])
    else:
        _show_results(results)
    if any(result.holds is False for result in results):
        raise typer.Exit(1)


def _show_results(results: list[Any]) -> None:
    words = {True: "holds", False: "DOES NOT HOLD", None: "not measured"}
    for r in results:
        m = r.measured
        measured = "" if m.median is None else f"measured {m.median:.4g} ({m.min:.4g} to {m.max:.4g}), "
        print(f"{words[r.holds]}: {r.claim}")
        print(f"  {measured}paper: {r.paper or 'no figure'}; against {r.baseline}; {r.metric}")
        print(f"  {r.workload}; {r.mode}, {r.seconds:.1f} s")
