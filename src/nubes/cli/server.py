"""`nubes up` and `nubes down`."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nubes import config
from nubes.cli import output
from nubes.cli.errors import Exit
from nubes.cli.options import Data, Json, settle
from nubes.kernel.errors import AlreadyRunning, NubesError, Unavailable
from nubes.kernel.units import show_bytes, size_bytes

if TYPE_CHECKING:
    import socket

    from nubes.drivers.local.control_plane import ControlPlane

END_S = 40.0  # how long a control plane may take to end


def up(
    data: Data = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="The gateway's port; 0: any free one.", show_default="8642")] = None,
    keep_alive: Annotated[str | None, typer.Option(help="The keep-alive policy.")] = None,
    queueing: Annotated[str | None, typer.Option(help="The queueing policy.")] = None,
    cold_start: Annotated[str | None, typer.Option(help="The cold-start policy.")] = None,
    placement: Annotated[str | None, typer.Option(help="The placement policy, for several machines.")] = None,
    balancing: Annotated[str | None, typer.Option(help="The balancing policy: which instance takes a call.")] = None,
    hedging: Annotated[str | None, typer.Option(help="The hedging policy, for idempotent functions.")] = None,
    disruption: Annotated[
        str | None, typer.Option(help="The disruption policy: which instances may go at once.")
    ] = None,
    cpu: Annotated[float | None, typer.Option(help="CPU cores to give out.", show_default="all")] = None,
    memory: Annotated[
        str | None, typer.Option(help='Memory to give out, e.g. "8GiB".', show_default="most of it")
    ] = None,
    database: Annotated[
        str | None, typer.Option(help="postgresql://... for log, dicts, queues, secrets.", show_default="the folder")
    ] = None,
    objects: Annotated[
        str | None, typer.Option(help="s3://bucket/prefix for large data.", show_default="the folder")
    ] = None,
    on: Annotated[str | None, typer.Option(help="local or ray: whose machines.", show_default="local")] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray's address; a new local Ray if not named.", show_default=False)
    ] = None,
    agents: Annotated[
        str | None, typer.Option(help="HOST:PORT where machines may `nubes join`.", show_default="nowhere")
    ] = None,
    detach: Annotated[bool, typer.Option("-d", "--detach", help="Run in the background.")] = False,
    json: Json = False,
    ready_fd: Annotated[int, typer.Option(hidden=True)] = -1,
) -> None:
    """Run the control plane and its HTTP gateway, in the foreground until Ctrl-C or `nubes down`."""
    values = settle(
        data=data,
        host=host,
        port=port,
        keep_alive=keep_alive,
        queueing=queueing,
        cold_start=cold_start,
        placement=placement,
        balancing=balancing,
        hedging=hedging,
        disruption=disruption,
        cpu=cpu,
        memory=memory,
        database=database,
        objects=objects,
        on=on,
        address=address,
        agents=agents,
    )
    policies = {seam: values[seam].value for seam in config.POLICIES if values[seam].value}
    from nubes.kernel.policy import make

    for seam, text in policies.items():
        make(seam, text)  # a wrong name is an error before anything runs
    if detach:
        _detach(Path(values["data"].value), json)
        return
    _serve(values, policies, json, ready_fd)


def _serve(values: dict[str, config.Value], policies: dict[str, str], json: bool, ready_fd: int) -> None:
    from nubes.drivers.local import server
    from nubes.gateway.server import Gateway

    folder = Path(values["data"].value)
    sock = _bind(folder, values["host"].value, values["port"].value)
    memory = values["memory"].value

    async def gateway(plane: ControlPlane) -> Gateway:
        started = await Gateway(plane, sock).start()
        _announce(plane, started.url, json)
        return started

    make, beside = server.machines(values["on"].value, values["address"].value)
    plane = partial(
        make, folder, policies, values["cpu"].value, size_bytes(memory) if memory else 0,
        **{name: values[name].value for name in ("database", "objects", "agents")},
    )  # fmt: skip
    server.run(plane, *beside, gateway, ready_fd=ready_fd)


def _bind(folder: Path, host: str, port: int) -> socket.socket:
    """The gateway's socket, before anything else is touched. Another nubes on the folder is the better explanation."""
    from nubes.gateway.server import bind

    try:
        return bind(host, port)
    except NubesError:
        if _is_held(folder):
            where = _url(folder)
            raise AlreadyRunning(
                f"A control plane already runs on {folder}{f', at {where}' if where else ''}.",
                "Stop it with `nubes down`, or choose another folder with --data.",
            ) from None
        raise


def _announce(plane: ControlPlane, url: str, json: bool) -> None:
    from nubes import __version__

    controller = plane.controller
    policies = {seam: policy.text for seam, policy in controller.policies.items()}
    token = plane.folder / "token"
    if json:
        output.as_json_line({
            "version": __version__, "pid": os.getpid(), "url": url, "token_file": str(token), "data": str(plane.folder),
            "limits": plane.limits.kind, "limits_about": plane.limits.describe(), "cpu": controller.cpu,
            "memory_bytes": controller.memory_bytes, "policies": policies, "log": plane.journal.where,
            "objects": plane.objects,
        })  # fmt: skip
    else:
        rows = (
            ("gateway", f"{url}  (try {url}/docs)"),
            ("token", str(token)),
            ("data", str(plane.folder)),
            *([("log", plane.journal.where)] if plane.journal.where != str(plane.folder) else []),
            *([("objects", plane.objects)] if plane.objects != str(plane.folder / "objects") else []),
            ("capacity", f"{controller.cpu:g} CPU, {show_bytes(controller.memory_bytes)} of memory"),
            ("limits", plane.limits.describe()),
            ("policies", ", ".join(f"{seam} {text}" for seam, text in policies.items())),
        )
        print(f"nubes {__version__} is up, as process {os.getpid()}.")
        for label, text in rows:
            print(f"  {label:<9} {text}")
        print("Next: `nubes deploy app.py`, `nubes ps`; `nubes down` or Ctrl-C ends it.")
    sys.stdout.flush()


def _detach(folder: Path, json: bool) -> None:
    """Starts `nubes up` in the background and passes on what it says, good or bad."""
    reading, writing = os.pipe()
    argv = [sys.executable, "-m", "nubes.cli.main", "up", "--ready-fd", str(writing), *(["--json"] if json else [])]
    (folder / "output").mkdir(parents=True, exist_ok=True, mode=0o700)
    said, complained = folder / "output" / "up.log", folder / "output" / "up.errors.log"
    with open(said, "wb") as out, open(complained, "wb") as errors:
        process = subprocess.Popen(
            argv, pass_fds=(writing,), stdin=subprocess.DEVNULL, stdout=out, stderr=errors, start_new_session=True
        )
    os.close(writing)
    ready = os.read(reading, 1)
    os.close(reading)
    if not ready:
        sys.stderr.write(complained.read_text(errors="replace"))
        raise Exit(process.wait() or 1)
    sys.stdout.write(said.read_text())


def _is_held(folder: Path) -> bool:
    """Whether a control plane owns the folder."""
    try:
        fd = os.open(folder / "log" / "lock", os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(fd)


def _url(folder: Path) -> str:
    path = folder / "url"
    return path.read_text().strip() if path.exists() else ""


def down(data: Data = None, json: Json = False) -> None:
    """End the control plane. What was accepted for good goes on at the next `nubes up`."""
    folder = Path(settle(data=data)["data"].value)
    from nubes import client

    try:
        connected = client.connect(start=False)
    except Unavailable:
        if _is_held(folder):
            raise
        _ended(json, folder, 0)
        return
    answer: dict[str, Any] = connected.ask("shutdown")
    until = time.monotonic() + END_S
    while _is_held(folder):
        if time.monotonic() > until:
            pid = answer["pid"]
            raise NubesError(
                f"Process {pid} has not ended within {END_S:g} s.",
                f"End it with `kill -9 {pid}`; nothing accepted is lost.",
            )
        time.sleep(0.02)
    _ended(json, folder, answer["pid"])


def _ended(json: bool, folder: Path, pid: int) -> None:
    if json:
        output.as_json({"data": str(folder), "pid": pid or None, "was_running": bool(pid)})
    else:
        print(f"Process {pid} has ended." if pid else f"Nothing runs on {folder}.")
