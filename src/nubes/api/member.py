"""What functions and classes of an app have in common."""

from __future__ import annotations

import functools
from typing import Any

from nubes.api.declaring import Declared
from nubes.api.deployment import Deployment
from nubes.functions.spec import FunctionSpec


class Member:
    """A function or class of an app: what the user wrote, what was declared of it, and where it is deployed."""

    def __init__(self, raw: Any, declared: Declared, deployment: Deployment) -> None:
        self.__nubes_raw__ = raw
        self.declared = declared
        self.deployment = deployment
        functools.update_wrapper(self, raw, updated=())  # type: ignore[arg-type]

    @property
    def spec(self) -> FunctionSpec:
        """What was declared of it, as plain data."""
        return self.declared.spec

    @property
    def name(self) -> str:
        """Its name within its app."""
        return self.declared.spec.name.partition("/")[2]

    def move(self, deployment: Deployment) -> None:
        """Makes it a member of another app."""
        self.declared = self.declared.within(deployment.app)
        self.deployment = deployment
