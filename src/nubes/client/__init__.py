"""The client's side of the control plane: finding or starting one, and making calls."""

from nubes.client.client import Client
from nubes.client.connection import Connection, Target
from nubes.client.finding import connect, data_folder, disconnect
from nubes.client.lookup import find
from nubes.client.outcomes import failure

__all__ = [
    "Client",
    "Connection",
    "Target",
    "connect",
    "data_folder",
    "disconnect",
    "failure",
    "find",
]
