"""What a user declares of a function, as plain data."""

from __future__ import annotations

import msgspec

from nubes.kernel.units import size_bytes

DEFAULT_MEMORY_BYTES = size_bytes("128MiB")


class Retries(msgspec.Struct, frozen=True, array_like=True):
    """How often a failed call is tried again, and the wait before: `initial * backoff**n`, at most `max_delay_s`."""

    max_retries: int = 0
    backoff_coefficient: float = 2.0
    initial_delay_s: float = 1.0
    max_delay_s: float = 60.0

    def delay_s(self, attempt: int) -> float:
        """Wait before the attempt after number `attempt` (from 1)."""
        return min(self.max_delay_s, self.initial_delay_s * self.backoff_coefficient ** (attempt - 1))


class Batching(msgspec.Struct, frozen=True, array_like=True):
    """Up to `max_batch_size` waiting calls run as one; the first of them waits at most `wait_s` for company."""

    max_batch_size: int
    wait_s: float


class Schedule(msgspec.Struct, frozen=True, array_like=True):
    """Calls made by the clock: a cron expression in a time zone, or every `period_s` seconds."""

    cron: str = ""
    timezone: str = "UTC"
    period_s: float = 0.0


class Web(msgspec.Struct, frozen=True, array_like=True):
    """How a function is reached over HTTP: `kind` is `function` (arguments from query or JSON body) or `asgi`."""

    kind: str = "function"
    method: str = "GET"
    public: bool = True


class Code(msgspec.Struct, frozen=True, array_like=True):
    """Where an instance finds the function: a module file and a qualified name, or a pickled object.

    `imports` are the packages it asks for: what a parent in the process tree may hold when it is forked.
    """

    file: str = ""
    module: str = ""
    qualname: str = ""
    pickled: bytes = b""
    imports: tuple[str, ...] = ()
    digest: str = ""


class FunctionSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One function, or one class whose methods share its instances. Named `app/function`."""

    name: str
    code: Code = Code()
    kind: str = "function"  # function | class
    methods: tuple[str, ...] = ()
    cpu: float = 0.125
    cpu_limit: float = 0.0  # 0: not limited
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    memory_limit_bytes: int = 0  # 0: not limited
    timeout_s: float = 300.0
    startup_timeout_s: float = 300.0
    retries: Retries = Retries()
    concurrency: int = 1
    min_instances: int = 0
    max_instances: int = 0  # 0: no limit of its own
    buffer_instances: int = 0
    max_queued: int = 100_000
    keep_alive: str = ""  # policy text; "": the cloud's
    batching: Batching | None = None
    schedule: Schedule | None = None
    web: Web | None = None
    model: str = ""  # the LLM it serves, by the name that requests give
    endpoints: dict[str, Web] = {}  # of a class: its methods that are reached over HTTP
    environment: str = ""  # id of a built image; "": the interpreter nubes itself runs in
    env: dict[str, str] = {}
    secrets: tuple[str, ...] = ()
    volumes: dict[str, str] = {}  # path in the function -> volume name
    generator: bool = False
    single_use: bool = False  # every call gets an instance of its own
    # What queueing policies look at.
    criticality: int = 0  # higher goes first
    quota: str = "reserved"  # reserved | opportunistic
    quota_cpu: float = 0.0  # CPU-seconds a second this function may use; 0: not limited
    deadline_s: float = (
        0.0  # how long after its arrival a call may start; 0: seconds if reserved, 24 h if opportunistic
    )
    trigger: str = "call"  # call | http | timer | queue | ...: what kind of event makes its calls
    balancing: str = ""  # which instance takes a call, policy text; "": the cloud's
    hedging: str = ""  # when a call gets a copy on another instance, policy text; "": the cloud's
    idempotent: bool = False  # may run twice for one call: only then calls are hedged
    disruption: str = ""  # which instances may go now for a deployment or a drain, policy text; "": the cloud's
