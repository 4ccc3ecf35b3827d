"""nubes from end to end, in about a minute: `make demo`.

Starts a cloud, runs the job in `app.py` on it, asks the result over HTTP, asks the language model of `assistant.py`,
shows what ran cold and warm, then replays the recorded run under three policies. Everything lives in a temporary
folder, and is gone at the end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from nubes.kernel.units import show_seconds
from nubes.replay import Report, configurations, ranking, replay, table
from nubes.replay.ledger import START_PARTS, ledger
from nubes.replay.report import METRICS
from nubes.workloads.recording import load_recording

APP = Path(__file__).with_name("app.py")
ASSISTANT = Path(__file__).with_name("assistant.py")
QUESTION = "What is a cloud made of? Answer in two sentences."
QUERIES = (
    "parse json",
    "walk directory tree",
    "open http connection",
    "split shell command",
    "compress bytes",
    "temporary file",
)
ROUNDS, PAUSE_S = 4, 3.0
LIVE = "cidre(foresee=true)"  # what decides on keep-alive where nobody says otherwise
POLICIES = (LIVE, "fixed-window(keep=1s)", "hybrid-histogram")
SAVED = {"cold_share": "of the cold starts", "p95": "of the p95 latency", "dollars": "of the cost"}

console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)


def main() -> None:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nubes-demo-") as folder:
        os.environ["NUBES_DATA"] = folder
        os.environ["NUBES_KEEP_ALIVE"] = LIVE
        try:
            console.rule("1. A cloud")
            up = nubes("up", "--detach", "--port", "0")
            console.print(f"It is up at {up['url']}, as process {up['pid']}, and keeps everything in {folder}.")
            deployed = nubes("deploy", str(APP))
            console.print(f"Deployed: {', '.join(deployed['functions'])}.")
            console.rule("2. A job: map, shuffle, reduce")
            work()
            console.rule("3. A web endpoint")
            ask(deployed["endpoints"][0])
            console.rule("4. A language model")
            chat(str(up["url"]), (Path(folder) / "token").read_text().strip())
        finally:
            nubes("down")
        console.rule("5. What ran cold, and what warm")
        show_starts(Path(folder))
        console.rule("6. What other policies would have made of it")
        compare(Path(folder))
    console.rule(f"Done in {show_seconds(time.monotonic() - began)}; the cloud is down and its folder is gone")


def nubes(*words: str) -> dict[str, Any]:
    """Runs a command of nubes and returns what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "nubes.cli.main", *words, "--json"], stdout=subprocess.PIPE, check=True
    )
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def work() -> None:
    """Builds the index on the cloud, with a bar for each stage."""
    sys.path.insert(0, str(APP.parent))
    import app as stdlib

    files = stdlib.sources()
    totals = {"parse": len(files), "scatter": -(-len(files) // stdlib.BATCH), "reduce": stdlib.PARTITIONS}
    counted = dict.fromkeys(totals, 0)
    columns = (TextColumn("{task.description:<8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        tasks = {stage: progress.add_task(stage, total=total, start=False) for stage, total in totals.items()}
        for stage, count in stdlib.build(files):
            progress.start_task(tasks[stage])
            progress.advance(tasks[stage])
            counted[stage] += count
    console.print(
        f"{len(files):,} files, {counted['parse']:,} definitions, {counted['reduce']:,} words to find them by."
    )


def ask(url: str) -> None:
    """Asks the endpoint in rounds with pauses in between, as people do."""
    console.print(f"GET {url}?q=...")
    for nth in range(ROUNDS):
        for query in QUERIES:
            begun = time.monotonic()
            with urllib.request.urlopen(
                f"{url}?{urllib.parse.urlencode({'q': query, 'limit': 1})}", timeout=60
            ) as answer:
                found = json.load(answer)
            if nth == 0:
                took = show_seconds(time.monotonic() - begun)
                console.print(f"  {query:<21} {found[0]['name'] if found else 'nothing':<45} {took:>8}", markup=False)
        time.sleep(PAUSE_S if nth < ROUNDS - 1 else 0.0)
    console.print(f"... and {(ROUNDS - 1) * len(QUERIES)} more requests, {PAUSE_S:g} s between rounds.")


def chat(url: str, token: str) -> None:
    """Deploys a language model beside the job, asks it, and prints its answer as it comes."""
    deployed = nubes("deploy", str(ASSISTANT))
    console.print(f"Deployed: {', '.join(deployed['functions'])}. POST {url}/v1/chat/completions")
    body = {
        "model": "assistant",
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 80,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    begun, first, text, count = time.monotonic(), 0.0, "", 0
    with urllib.request.urlopen(request, timeout=120) as answer:
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if chunk["choices"]:
                text += chunk["choices"][0]["delta"].get("content") or ""
                first = first or time.monotonic()
            count = (chunk.get("usage") or {}).get("completion_tokens", count)
    rate = (count - 1) / (time.monotonic() - first)
    console.print(f"  > {QUESTION}", markup=False)
    console.print(f"  {text.strip()}", markup=False)
    console.print(f"{count} tokens: the first after {show_seconds(first - begun)}, then {rate:.0f} a second.")


def show_starts(data: Path) -> None:
    """Every function's calls, and what its cold ones waited for."""
    grid = Table(box=None, header_style="dim")
    grid.add_column("function")
    for column in ("calls", "warm", "cold", "mean wait", "most of it for"):
        grid.add_column(column, justify="right")
    for f in ledger(data).functions:
        waits = {part: f.parts[part] / max(1, f.cold) for part in START_PARTS}
        most = max(waits, key=waits.__getitem__)
        shown = (show_seconds(sum(waits.values())), f"{most} ({show_seconds(waits[most])})") if f.cold else ("", "")
        grid.add_row(f.function, *(f"{n:,}" for n in (f.calls, f.calls - f.cold, f.cold)), *shown)
    console.print(grid)
    console.print("`nubes coldstart report` shows all the parts, and what would save most.", style="dim")


def compare(data: Path) -> None:
    """Replays the recorded run under each policy; the replay says itself how far to trust it."""
    report = replay(load_recording(data, "this run"), configurations(POLICIES))
    console.print(table(report))
    console.print()
    for metric, what in SAVED.items():
        console.print(f"- {savings(report, metric, what)}")


def savings(report: Report, metric: str, what: str) -> str:
    """What the best policy would have saved, unless the replay cannot tell it from the one that was live."""
    best = ranking(report, metric)[0]
    values = {row.label: METRICS[metric](row.measures) for row in report.rows}
    if LIVE in best:
        return f"No policy here would clearly have saved any {what}."
    share = 1.0 - values[best[0]] / values[LIVE]
    assert report.gap is not None
    return f"{' or '.join(best)} would have saved {share:.0%} {what}, with an error of {report.gap.margin[metric]:.1%}."


if __name__ == "__main__":
    main()
