"""What `@app.function` and `@app.cls` take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from nubes.functions.spec import DEFAULT_MEMORY_BYTES, Retries, Schedule
from nubes.kernel.errors import UsageError
from nubes.kernel.units import seconds, size_bytes
from nubes.place import is_local

if TYPE_CHECKING:
    from nubes.images import Image
    from nubes.storage import Secret, Volume


def options(
    *,
    name: str | None = None,
    cpu: float | tuple[float, float] = 0.125,
    memory: str | tuple[str, str] | None = None,
    timeout: str | float = 300,
    startup_timeout: str | float = 300,
    retries: int | Retries = 0,
    min_instances: int = 0,
    max_instances: int = 0,
    buffer_instances: int = 0,
    scaledown_window: str | float | None = None,
    keep_alive: str = "",
    max_queued: int = 100_000,
    image: Image | None = None,
    secrets: Iterable[Secret] = (),
    volumes: Mapping[str, Volume] | None = None,
    env: Mapping[str, str] | None = None,
    schedule: Schedule | None = None,
    single_use: bool = False,
    serialized: bool = False,
    criticality: int = 0,
    quota: str = "reserved",
    quota_cpu: float = 0.0,
    deadline: str | float = 0,
    balancing: str = "",
    hedging: str = "",
    idempotent: bool = False,
    disruption: str = "",
    min_containers: int = 0,
    max_containers: int = 0,
    buffer_containers: int = 0,
) -> dict[str, Any]:
    """The options of a function, checked, with units made plain.

    Sizes are text ("512MiB"), durations text ("5m") or seconds. `cpu` and `memory` are requests; a pair is (request,
    limit). `min_containers` and its kin are the same as `min_instances`; `scaledown_window="5m"` is the same as
    `keep_alive="fixed-window(keep=5m)"`. Raises `UsageError`.
    """
    cpu_request, cpu_limit = cpu if isinstance(cpu, tuple) else (cpu, 0.0)
    memory_request, memory_limit = memory if isinstance(memory, tuple) else (memory, None)
    low, high = min_instances or min_containers, max_instances or max_containers
    buffer = buffer_instances or buffer_containers
    for what, count in (("min_instances", low), ("max_instances", high), ("buffer_instances", buffer)):
        if count < 0:
            raise UsageError(f"{what}={count} is negative.", "Write a number of instances, 0 or more.")
    if high and low > high:
        raise UsageError(f"min_instances={low} is more than max_instances={high}.")
    if cpu_request < 0 or cpu_limit < 0:
        raise UsageError(f"cpu={cpu!r} is negative.", "Write a number of cores, e.g. cpu=0.5.")
    if quota not in ("reserved", "opportunistic"):
        raise UsageError(f"quota={quota!r} is unknown.", 'It is "reserved" or "opportunistic".')
    if scaledown_window is not None:
        keep_alive = f"fixed-window(keep={seconds(scaledown_window, 'scaledown_window'):g}s)"
    if is_local():
        named = {"keep-alive": keep_alive, "balancing": balancing, "hedging": hedging, "disruption": disruption}
        for seam, text in named.items():
            if text:
                from nubes.kernel.policy import make

                make(seam, text)  # a wrong name is an error where it is written
    if hedging and not idempotent:
        raise UsageError(
            f"hedging={hedging!r} runs some calls twice.",
            "Say idempotent=True if this does no harm; else leave it out.",
        )
    return {
        "own_name": name,
        "cpu": float(cpu_request),
        "cpu_limit": float(cpu_limit),
        "memory_bytes": size_bytes(memory_request, "memory") if memory_request is not None else DEFAULT_MEMORY_BYTES,
        "memory_limit_bytes": size_bytes(memory_limit, "memory") if memory_limit else 0,
        "timeout_s": seconds(timeout, "timeout"),
        "startup_timeout_s": seconds(startup_timeout, "startup_timeout"),
        "retries": retries if isinstance(retries, Retries) else Retries(retries),
        "min_instances": low,
        "max_instances": high,
        "buffer_instances": buffer,
        "keep_alive": keep_alive,
        "max_queued": max_queued,
        "env": dict(env or {}),
        "schedule": schedule,
        "single_use": single_use,
        "criticality": criticality,
        "quota": quota,
        "quota_cpu": quota_cpu,
        "deadline_s": seconds(deadline, "deadline"),
        "balancing": balancing,
        "hedging": hedging,
        "idempotent": idempotent,
        "disruption": disruption,
        "image": image,
        "secrets": tuple(secrets),
        "volumes": dict(volumes or {}),
        "serialized": serialized,
    }
