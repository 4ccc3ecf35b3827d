"""An app's functions as this process has them on a control plane."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from nubes import client as clients
from nubes.api.declaring import Declared
from nubes.client import Client, Connection

_encode = msgspec.msgpack.Encoder().encode


class Deployment:
    """Puts an app's functions on a control plane, and knows the client to call them through.

    `client` is None until the app is there.
    """

    def __init__(self, app: str, declared: Callable[[], Iterable[Declared]]) -> None:
        self.app = app
        self.client: Client | None = None
        self._declared = declared
        self._held: Connection | None = None

    def ready(self) -> Client:
        """The client. Outside the cloud, an app that is not there yet is put up for as long as this process lives."""
        if self.client is not None:
            return self.client
        if os.environ.get("NUBES_APP") is None:
            return self.hold()
        return self.attach()

    def attach(self) -> Client:
        """From here on calls go to the app as it is deployed already."""
        self.client = clients.connect()
        return self.client

    def keep(self) -> dict[str, Any]:
        """Deploys the app for good; its name, version and functions."""
        client = clients.connect()
        answer: dict[str, Any] = client.ask("deploy", **self._prepared(client), ephemeral=False)
        self.client = client
        return answer

    def hold(self) -> Client:
        """Deploys the app until `release`. An ephemeral app lives as long as the connection that brought it."""
        self.release()  # before: an app goes with the connection that brought it, whoever brought it anew
        client = clients.connect()
        deployment = self._prepared(client)
        held = Connection(client.path)
        try:
            held.ask("deploy", {**deployment, "ephemeral": True})
        except BaseException:
            held.close()
            raise
        self._held, self.client = held, client
        return client

    def release(self) -> None:
        """Lets go of the app; an ephemeral one is gone then."""
        self.client = None
        if self._held is not None:
            self._held.close()
            self._held = None

    def stop(self) -> None:
        """Takes the app off the control plane. Raises `NotFound` if it is not there."""
        clients.connect(start=False).ask("stop_app", app=self.app)
        self.release()

    def _prepared(self, client: Client) -> dict[str, Any]:
        """What is deployed, once images are built and secrets and volumes are there."""
        declared = list(self._declared())
        for one in declared:
            if one.image is not None and one.image.id:
                client.ask("build", environment=one.image.id, definition=one.image.definition())
            for secret in one.secrets:
                secret.hand_in(client)
            for volume in one.volumes:
                volume.hand_in(client)
        return {"app": self.app, "functions": [_encode(one.complete()) for one in declared]}
