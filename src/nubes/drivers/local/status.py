"""The state of a control plane as plain data: what `nubes ps`, the gateway and tests look at."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from nubes.functions.seams import NodeView
from nubes.functions.state import Call, Function, Instance, Machine

if TYPE_CHECKING:
    from nubes.drivers.local.control_plane import ControlPlane


def status_of(plane: ControlPlane, limit: int = 1000) -> dict[str, Any]:
    """Apps, functions, instances, parents and up to `limit` calls under way."""
    controller = plane.controller
    now = plane.clock()
    pids = {id: process.pid for id, process in plane.processes.instances.items()}
    for member in plane.agents.members.values() if plane.agents is not None else ():
        pids |= member.pids
    parents = plane.processes.parents.pids()
    return {
        "pid": os.getpid(),
        "folder": str(plane.folder),
        "up_s": now - plane.started_s,
        "cpu": controller.cpu,
        "cpu_used": round(controller.cpu_used, 3),
        "memory_bytes": controller.memory_bytes,
        "memory_used_bytes": controller.memory_used,
        "limits": plane.limits.kind,
        "policies": {seam: policy.text for seam, policy in controller.policies.items()},
        "machines": [_machine(plane, m) for m in controller.machines.values()],
        "records": plane.journal.log.count,
        "findings": plane.journal.log.findings,
        "full": plane.journal.full,
        "apps": {
            name: {"version": version, "functions": list(functions), "ephemeral": ephemeral}
            for name, (version, functions, ephemeral) in controller.apps.items()
        },
        "functions": [_function(f) for f in controller.functions.values()],
        "instances": [_instance(i, pids.get(i.id, 0), now) for i in controller.instances.values()],
        "parents": [_parent(n, parents.get(n.id, 0)) for n in controller.tree.where.values()],
        "calls": [_call(c, now) for c in list(controller.calls.values())[:limit]],
    }


def _machine(plane: ControlPlane, m: Machine) -> dict[str, Any]:
    member = plane.agents.members.get(m.id) if plane.agents is not None else None
    return {
        "id": m.id,
        "name": member.about.name if member is not None else "here",
        "connected": m.id == 0 or (member is not None and member.line.connected),
        "zone": m.zone,
        "draining": m.draining,
        "kept_by": sorted({i.function.name for i in m.instances.values() if m.draining and i.stays()}),
        "instances": len(m.instances),
        "cpu": m.cpu,
        "cpu_used": round(m.cpu_used, 3),
        "memory_bytes": m.memory_bytes,
        "memory_used_bytes": m.memory_used,
    }


def _function(f: Function) -> dict[str, Any]:
    return {
        "name": f.name,
        "busy": f.busy,
        "idle": f.idle,
        "starting": f.starting,
        "queued": f.queued,
        "calls": f.arrivals,
        "exec_s": f.exec_s,
        "cold_start_s": f.cold_start_s,
        "keep_alive": f.keep_alive.text,
        "balancing": f.replicas.balancing.text if f.replicas and f.replicas.balancing else "",
        "hedging": f.replicas.hedging.text if f.replicas and f.replicas.hedging else "",
        "disruption": f.control.policy.text if f.control else "",
        "copies": f.replicas.copies if f.replicas else 0,
    }


def _instance(i: Instance, pid: int, now: float) -> dict[str, Any]:
    return {
        "id": i.id,
        "function": i.function.name,
        "machine": i.machine.id,
        "pid": pid,
        "state": "starting" if not i.ready else "busy" if i.load else "idle",
        "load": i.load,
        "uses": i.uses,
        "age_s": now - i.started_s,
        "node": i.node,
        "calls": list(i.calls),
    }


def _parent(n: NodeView, pid: int) -> dict[str, Any]:
    return {
        "id": n.id,
        "parent": n.parent,
        "pid": pid,
        "environment": n.environment,
        "imports": sorted(n.imports),
        "function": n.function,
        "ready": n.ready,
        "forks": n.forks,
        "memory_bytes": n.memory_bytes,
        "grow_s": n.grow_s,
    }


def _call(c: Call, now: float) -> dict[str, Any]:
    return {
        "id": c.id,
        "function": c.asked,
        "state": "PENDING" if c.instance <= 0 else "RUNNING",
        "age_s": now - c.arrived_s,
        "attempt": c.attempt,
        "durable": c.keep,
    }
