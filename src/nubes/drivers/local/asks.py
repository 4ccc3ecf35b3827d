"""What clients may ask of the control plane besides calls. Each function here answers the question of its name."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from math import inf
from typing import Any

from nubes.drivers.local.sessions import Session, ask, specs_from
from nubes.drivers.local.status import status_of
from nubes.functions import events as e
from nubes.kernel.errors import NotFound, Unavailable, UsageError
from nubes.kernel.policy import make


async def _safe(session: Session) -> None:
    """Returns once everything said so far is on disk."""
    future: asyncio.Future[None] = session.plane.loop.create_future()

    def safe() -> None:
        if not future.done():
            future.set_result(None)

    def full(why: str) -> None:
        if not future.done():
            future.set_exception(Unavailable(why, "Then try again."))

    session.plane.journal.when_safe(safe, full)
    await future


@ask
async def deploy(session: Session, args: dict[str, Any]) -> dict[str, Any]:
    specs = specs_from(args["functions"])
    ephemeral = bool(args.get("ephemeral"))
    version = session.plane.deploy(args["app"], specs, ephemeral)
    if ephemeral:
        session.apps.add(args["app"])
    else:
        await _safe(session)
    return {"app": args["app"], "version": version, "functions": [spec.name for spec in specs]}


@ask
async def stop_app(session: Session, args: dict[str, Any]) -> dict[str, Any]:
    if args["app"] not in session.plane.controller.apps:
        known = ", ".join(session.plane.controller.apps) or "none"
        raise NotFound(f"No app {args['app']!r} is deployed.", f"Deployed are: {known}.")
    session.plane.feed(e.Removed(args["app"]))
    session.apps.discard(args["app"])
    await _safe(session)
    return {"app": args["app"]}


@ask
async def set_policy(session: Session, args: dict[str, Any]) -> dict[str, Any]:
    make(args["seam"], args["policy"])  # says so if there is none
    session.plane.feed(e.PolicySet(args["seam"], args["policy"], args.get("function", "")))
    await _safe(session)
    return {"seam": args["seam"], "policy": args["policy"]}


@ask
async def functions(session: Session, args: dict[str, Any]) -> list[dict[str, Any]]:
    """The functions of an app, or of all, as a client needs them to call them."""
    controller = session.plane.controller
    return [
        {"name": s.name, "kind": s.kind, "methods": list(s.methods), "generator": s.generator, "web": s.web is not None}
        for s in controller.specs.values()
        if args.get("app") in (None, s.name.partition("/")[0])
    ]


@ask
async def status(session: Session, args: dict[str, Any]) -> dict[str, Any]:
    """Everything `nubes ps` shows."""
    return status_of(session.plane, int(args.get("limit", 1000)))


@ask
async def shutdown(session: Session, args: dict[str, Any]) -> dict[str, Any]:
    session.plane.loop.call_later(0.05, session.stop.set)
    return {"pid": os.getpid()}


@ask
async def build(session: Session, args: dict[str, Any]) -> None:
    """Builds an image's environment, if it is not there, while the client hears how it goes."""
    tell = partial(session.printed, 0, "build/image", "stderr")
    await session.plane.environments.build(args["environment"], args["definition"], tell)


@ask
async def store(session: Session, args: dict[str, Any]) -> Any:
    """One operation on a shared dict or queue, or on all of them."""
    stores = session.plane.stores
    if args["operation"] == "queue_get":
        values, session.unless_read = await stores.take(args["arguments"])
        return values
    return await stores.answer(args["operation"], args["arguments"])


@ask
async def drain(session: Session, args: dict[str, Any]) -> dict[str, Any]:
    controller, id = session.plane.controller, args["machine"]
    m = controller.machines.get(id)
    if m is None:
        known = ", ".join(map(str, controller.machines)) or "none"
        raise NotFound(f"There is no machine {id}.", f"There are: {known}.")
    agents = session.plane.agents
    if args["undo"] and agents is not None and id in agents.members and agents.members[id].leaving:
        raise UsageError(f"Machine {id} was told on the machine itself to leave.", "Start its agent again.")
    undo = e.MachineReady(m.cpu, int(m.memory_bytes), m.id, m.zone)
    session.plane.feed(undo if args.get("undo") else e.MachineDraining(id, args.get("within_s", inf)))
    return {"machine": id, "draining": not args.get("undo")}


@ask
async def hold(session: Session, args: dict[str, Any]) -> None:
    """Makes a dict or queue that is gone when this connection is."""
    stores = session.plane.stores
    await stores.answer("store_create", {**args, "ephemeral": True})
    session.at_end.append(partial(stores.drop, args["kind"], args["name"]))


@ask
async def secret_put(session: Session, args: dict[str, Any]) -> None:
    secrets = session.plane.secrets
    await secrets.put(args["name"], args["values"], bool(args["allow_existing"]))
    await secrets.tidy({name for spec in session.plane.controller.specs.values() for name in spec.secrets})


@ask
async def secret_check(session: Session, args: dict[str, Any]) -> None:
    session.plane.secrets.check(args["name"], args["required"])


@ask
async def secret_list(session: Session, args: dict[str, Any]) -> list[str]:
    return session.plane.secrets.listed()


@ask
async def secret_delete(session: Session, args: dict[str, Any]) -> None:
    await session.plane.secrets.delete(args["name"], bool(args["allow_missing"]))
