"""What `@app.function` and `@app.cls` take, and the specification it becomes."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from nubes.api.source import code_of
from nubes.functions.spec import DEFAULT_MEMORY_BYTES, FunctionSpec, Retries, Schedule, Web
from nubes.kernel.errors import UsageError
from nubes.kernel.units import seconds, size_bytes
from nubes.place import is_local

if TYPE_CHECKING:
    from nubes.app import App
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
    min_containers: int = 0,
    max_containers: int = 0,
    buffer_containers: int = 0,
) -> dict[str, Any]:
    """What `@app.function` and `@app.cls` take. Sizes are text ("512MiB"), durations text or seconds.

    `cpu` and `memory` are requests; a pair is (request, limit). `min_containers` and its kin are the same as
    `min_instances`; `scaledown_window="5m"` the same as `keep_alive="fixed-window(keep=5m)"`.
    """
    cpu_request, cpu_limit = cpu if isinstance(cpu, tuple) else (cpu, 0.0)
    memory_request, memory_limit = memory if isinstance(memory, tuple) else (memory, None)
    for what, count in (
        ("min_instances", min_instances),
        ("max_instances", max_instances),
        ("buffer_instances", buffer_instances),
    ):
        if count < 0:
            raise UsageError(f"{what}={count} is negative.")
    low, high = min_instances or min_containers, max_instances or max_containers
    if high and low > high:
        raise UsageError(f"min_instances={low} is more than max_instances={high}.")
    if cpu_request < 0 or cpu_limit < 0:
        raise UsageError(f"cpu={cpu!r} is negative.", "Write a number of cores, e.g. cpu=0.5.")
    if quota not in ("reserved", "opportunistic"):
        raise UsageError(f"quota={quota!r} is unknown.", 'It is "reserved" or "opportunistic".')
    if scaledown_window is not None:
        keep_alive = f"fixed-window(keep={seconds(scaledown_window, 'scaledown_window'):g}s)"
    if keep_alive and is_local():
        from nubes.kernel.policy import make

        make("keep-alive", keep_alive)  # a wrong name is an error where it is written
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
        "buffer_instances": buffer_instances or buffer_containers,
        "keep_alive": keep_alive,
        "max_queued": max_queued,
        "env": dict(env or {}),
        "schedule": schedule,
        "single_use": single_use,
        "criticality": criticality,
        "quota": quota,
        "quota_cpu": quota_cpu,
        "deadline_s": seconds(deadline, "deadline"),
        "image": image,
        "secrets": tuple(secrets),
        "volumes": dict(volumes or {}),
        "serialized": serialized,
    }


def spec_of(app: App, raw: Any, given: dict[str, Any]) -> FunctionSpec:
    try:
        chosen = options(**given)
    except TypeError as error:
        takes = ", ".join(inspect.signature(options).parameters)
        raise UsageError(f"{getattr(raw, '__name__', raw)}: {error}.", f"The options are: {takes}.") from None
    name = chosen.pop("own_name") or raw.__qualname__.rpartition("<locals>.")[2]
    image = chosen.pop("image") or app.image
    secrets = (*app.secrets, *chosen.pop("secrets"))
    volumes = {**app.volumes, **chosen.pop("volumes")}
    raw.__nubes_image__, raw.__nubes_secrets__, raw.__nubes_volumes__ = image, secrets, tuple(volumes.values())
    if image is not None:
        chosen["env"] = {**dict(image.variables), **chosen["env"]}
    web = getattr(raw, "__nubes_web__", None)
    methods: tuple[str, ...] = ()
    endpoints: dict[str, Web] = {}
    if isinstance(raw, type):
        endpoints = {
            n: getattr(raw, n).__nubes_web__ for n in dir(raw) if hasattr(getattr(raw, n, None), "__nubes_web__")
        }
        methods = tuple(
            n for n in dir(raw) if n in endpoints or getattr(getattr(raw, n, None), "__nubes_method__", False)
        )
    batching = getattr(raw, "__nubes_batching__", None)
    for one in methods:
        batching = batching or getattr(getattr(raw, one), "__nubes_batching__", None)
        web = web or getattr(getattr(raw, one), "__nubes_web__", None)
    if isinstance(raw, type) and not methods:
        raise UsageError(f"Class {raw.__name__} has no method that can be called.", "Put @nubes.method() above one.")
    chosen["keep_alive"] = chosen["keep_alive"] or app.keep_alive
    return FunctionSpec(
        name=f"{app.name}/{name}",
        code=code_of(raw, chosen.pop("serialized")),
        kind="class" if isinstance(raw, type) else "function",
        methods=methods,
        concurrency=getattr(raw, "__nubes_concurrency__", 100 if web and web.kind == "asgi" else 1),
        batching=batching,
        web=web,
        endpoints=endpoints,
        environment=image.id if image is not None and image.id else "",
        secrets=tuple(secret.name for secret in secrets),
        volumes={path: volume.name for path, volume in volumes.items()},
        generator=inspect.isgeneratorfunction(raw) or inspect.isasyncgenfunction(raw),
        trigger="timer" if chosen["schedule"] else "http" if web else "call",
        **chosen,
    )
