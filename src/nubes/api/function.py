"""Functions of the cloud."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from nubes import client as clients
from nubes.api.calling import Calling
from nubes.api.declaring import Declared
from nubes.api.deployment import Deployment
from nubes.api.member import Member
from nubes.client import Client, Target
from nubes.kernel.errors import UsageError

P = ParamSpec("P")
R = TypeVar("R")


class Function(Member, Calling[P, R]):
    """A function of the cloud. Calling it plainly, or with `.local`, runs it here."""

    __nubes_raw__: Callable[P, R]

    def __init__(
        self,
        raw: Callable[P, R],
        declared: Declared,
        deployment: Deployment,
        key: str = "",
        route: tuple[str, ...] = (),
    ) -> None:
        super().__init__(raw, declared, deployment)
        self._key = key
        self._route = route

    @property
    def is_generator(self) -> bool:
        return self.declared.spec.generator

    def _target(self) -> Target:
        return Target(self.declared.spec.name, key=self._key, route=self._route)

    def _client(self) -> Client:
        return self.deployment.client or self.deployment.ready()

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.__nubes_raw__(*args, **kwargs)

    def local(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs the function here, in this process."""
        return self.__nubes_raw__(*args, **kwargs)

    def with_key(self, key: str) -> Function[P, R]:
        """The same function with an idempotency key: calls with the same key run once and share the answer.

        Raises `UsageError` for generators: what they yield is not kept.
        """
        if self.is_generator:
            raise UsageError(
                f"{self.name} yields: what it yields is not kept, so calls cannot share it.",
                "Call it without a key, or let it return a list.",
            )
        return Function(self.__nubes_raw__, self.declared, self.deployment, key, self._route)

    def then(self, *following: Function[Any, Any]) -> Function[P, Any]:
        """A chain: each function gets the result of the one before, handed on without coming back here in between.

        Raises `UsageError` for what does not take and give one result: generators and batched functions.
        """
        for f in (self, *following):
            if not isinstance(f, Function) or f.is_generator or (f is not self and f.spec.batching is not None):
                raise UsageError(f"{f.name} cannot be part of a chain.", "Plain functions can: they take one result.")
        route = (*self._route, *(f.spec.name for f in following))
        return Function(self.__nubes_raw__, self.declared, self.deployment, self._key, route)

    @staticmethod
    def from_name(app: str, name: str) -> DeployedFunction:
        """A function that is deployed already, or CLASS.METHOD. Raises `NotFound`."""
        client = clients.connect(start=False)
        return DeployedFunction(client, *clients.find(client, f"{app}/{name}"))


class DeployedFunction(Calling[..., Any]):
    """A deployed function, found by name."""

    def __init__(self, client: Client, target: Target, generator: bool) -> None:
        self._through = client
        self._to = target
        self._generator = generator

    @property
    def is_generator(self) -> bool:
        return self._generator

    def _target(self) -> Target:
        return self._to

    def _client(self) -> Client:
        return self._through
