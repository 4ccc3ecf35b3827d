"""Apps: what the declarative API starts from. Its other parts are in `nubes.api`, which knows nothing of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from nubes.api.cls import Cls
from nubes.api.declaring import Defaults, declare
from nubes.api.decorators import install_parameters, refuse_bare
from nubes.api.deployment import Deployment
from nubes.api.function import Function
from nubes.api.llm import make_llm
from nubes.kernel.errors import UsageError

if TYPE_CHECKING:
    from nubes.images import Image
    from nubes.storage import Secret, Volume

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])


class App:
    """Functions that are deployed together. `image`, `secrets`, `volumes` and `keep_alive` are defaults for them all.

    Its functions are called from anywhere: within `with app.run():`, after `app.deploy()`, or just so, which puts the
    app up for as long as this process lives. Raises `UsageError` for a name that cannot stand in a URL.
    """

    def __init__(
        self,
        name: str = "app",
        *,
        image: Image | None = None,
        secrets: Iterable[Secret] = (),
        volumes: Mapping[str, Volume] | None = None,
        keep_alive: str = "",
    ) -> None:
        if not name or any(letter in name for letter in "/#: "):
            raise UsageError(f"{name!r} cannot be the name of an app.", "Use letters, digits, dashes and dots.")
        self.name = name
        self.functions: dict[str, Function[Any, Any] | Cls] = {}
        self.entrypoints: dict[str, Callable[..., Any]] = {}
        self.scenarios: dict[str, Callable[[], Any]] = {}
        self.invariants: dict[str, Callable[[], Any]] = {}
        self.deployment = Deployment(name, lambda: [made.declared for made in self.functions.values()])
        self._defaults = Defaults(name, image, tuple(secrets), dict(volumes or {}), keep_alive)

    @overload
    def function(self, raw: Callable[P, R], /) -> Function[P, R]: ...
    @overload
    def function(self, /, **options: Any) -> Callable[[Callable[P, R]], Function[P, R]]: ...
    def function(self, raw: Any = None, /, **options: Any) -> Any:
        """Makes a Python function one of the cloud's: `@app.function(...)`. Raises `UsageError` for what cannot be.

        Sizes are text ("512MiB"), durations text ("5m") or seconds. Options, with their defaults:

        name                    the function's own
        cpu=0.125               cores it is counted with; a pair is (request, limit)
        memory="128MiB"         memory it is counted with; a pair is (request, limit)
        timeout=300             how long a call may run
        startup_timeout=300     how long an instance may take to import and set up
        retries=0               how often a failed call is tried again: a number, or nubes.Retries
        min_instances=0         how many instances are there at all times
        max_instances=0         how many there may be; 0: no limit
        buffer_instances=0      how many idle ones stand by
        keep_alive              the keep-alive policy, e.g. "hybrid-histogram"
        balancing               which instance takes a call, e.g. "prequal"
        hedging, idempotent     copies of late calls, e.g. "tail-at-scale"; only if a call may run twice
        disruption              which instances may go at once for a deployment or a drain, e.g. "quorum(up=2)"
        scaledown_window        "5m" is short for keep_alive="fixed-window(keep=5m)"
        max_queued=100000       how many calls may wait; more are refused with Overloaded
        single_use=False        every call gets an instance of its own
        image                   a nubes.Image: the Python environment it runs in
        secrets, env            environment variables: nubes.Secret objects, a dictionary
        volumes                 nubes.Volume objects by path
        schedule                nubes.Cron(...) or nubes.Period(...)
        serialized=False        ship the function itself rather than import its file
        criticality=0, quota="reserved", quota_cpu=0, deadline=0    what queueing policies look at
        """
        refuse_bare(raw, "app.function")

        def wrap(raw: Callable[P, R]) -> Function[P, R]:
            if isinstance(raw, type):
                raise UsageError(f"{raw.__name__} is a class.", "Use @app.cls() for it.")
            made = Function(raw, declare(raw, options, self._defaults), self.deployment)
            self.functions[made.name] = made
            return made

        return wrap

    def cls(self, raw: Any = None, /, **options: Any) -> Callable[[type], Any]:
        """Makes a class one of the cloud's: state is set up in `@enter` hooks, `@method`s are called remotely.

        The options are those of `function`. Raises `UsageError` for what cannot be.
        """
        refuse_bare(raw, "app.cls")

        def wrap(raw: type) -> Cls:
            if not isinstance(raw, type):
                raise UsageError(f"{getattr(raw, '__name__', raw)!r} is not a class.", "Use @app.function() for it.")
            install_parameters(raw)
            made = Cls(raw, declare(raw, options, self._defaults), self.deployment)
            self.functions[made.name] = made
            return made

        return wrap

    def llm(self, model: str, /, **options: Any) -> Cls:
        """Serves an LLM under OpenAI's and Anthropic's APIs: `app.llm("smollm2-135m")`. Raises `UsageError`.

        It answers at the gateway's /v1/chat/completions and their like, by its name, with the data folder's token as
        the API key. Options, with their defaults, beside those of `function`:

        name                    what it is called in the API: the model's own name
        format="int8"           of its weights: fp32, bf16, int8 or int4
        device="auto"           cuda if there is one, else cpu
        threads=0               0: all cores, shared out among the replicas
        kv_memory="1GiB"        for the KV cache of each replica
        batching, ordering, preemption, retention, speculation, restoration, fusion
                                policies, e.g. speculation="specinfer"
        adapters={}             LoRA adapters: name -> folder as PEFT saves it; asked for as model "name" or "llm:name"
        replicas=1              engine processes that answer as one: what one of them was lost with goes on in another
        routing, migration      policies for replicas: which one gets a request, which requests move while they run
        scaling                 how many replicas there are, e.g. "freeness(most=4)"; at first as many as declared
        prefill_replicas=0      so many of the replicas only compute prompts, and the others only answer
        max_waiting=1024        requests that may wait; more are refused with 503
        vllm_metrics=False      metrics under vLLM's names as well
        min_instances=1, max_instances=1
        """
        made = make_llm(model, options, self._defaults, self.deployment)
        self.functions[made.name] = made
        return made

    def local_entrypoint(self, raw: Any = None, /) -> Callable[[F], F]:
        """Marks a function that runs here, with `nubes run FILE`, and calls the cloud from there."""
        refuse_bare(raw, "app.local_entrypoint")

        def mark(raw: F) -> F:
            self.entrypoints[raw.__name__] = raw
            return raw

        return mark

    def scenario(self, raw: F) -> F:
        """Marks what a client of the app does in a day: `nubes storm FILE` plays it while whatever can break does."""
        self.scenarios[raw.__name__] = raw
        return raw

    def invariant(self, raw: F) -> F:
        """Marks what must hold when a day has come to rest: it raises, or returns a sentence, if that is not so."""
        self.invariants[raw.__name__] = raw
        return raw

    @property
    def registered_functions(self) -> dict[str, Function[Any, Any] | Cls]:
        """The app's functions and classes, by name."""
        return dict(self.functions)

    def include(self, other: App) -> App:
        """Takes over the functions of another app; returns this one."""
        for made in other.functions.values():
            made.move(self.deployment)
            self.functions[made.name] = made
        return self

    def deploy(self) -> dict[str, Any]:
        """Puts the app on the control plane, where it stays; returns its name, version and functions."""
        return self.deployment.keep()

    @contextlib.contextmanager
    def run(self) -> Iterator[App]:
        """Runs the app for as long as the block lasts; starts a control plane of its own if none is running."""
        self.deployment.hold()
        try:
            yield self
        finally:
            self.deployment.release()

    def stop(self) -> None:
        """Takes the app off the control plane. Raises `NotFound` if it is not there."""
        self.deployment.stop()
