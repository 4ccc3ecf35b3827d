"""What tests run on: this machine and its data folder, which is the default, PostgreSQL and S3, or Ray.

A module that says `STATES = ("folder", "servers", "ray")` has all its tests that start a control plane run on each:
in a data folder, on PostgreSQL and S3, and on a Ray cluster of two nodes. `SLOW_STATES` are for `make test-slow`.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from backends import Postgres, object_store, ray_cluster

_numbers = itertools.count()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    states = list(getattr(metafunc.module, "STATES", ()))
    slow = getattr(metafunc.module, "SLOW_STATES", ())
    if slow and not states:
        states.append("folder")
    states += [pytest.param(state, marks=pytest.mark.slow) for state in slow]
    if states and "state" in metafunc.fixturenames:
        metafunc.parametrize("state", states, indirect=True, scope="module")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server for all tests of this process that ask for one."""
    server = Postgres()
    yield server
    server.close()


@pytest.fixture(scope="session")
def s3() -> Iterator[dict[str, str]]:
    """The variables with which an S3 mock server is reached, whose bucket is `nubes`."""
    with object_store() as variables:
        yield variables


@pytest.fixture(scope="session")
def ray() -> Iterator[str]:
    """The address of a Ray cluster of two nodes, all of them on this machine."""
    with ray_cluster(2) as cluster:
        yield cluster.address


@pytest.fixture(scope="module")
def state(request: pytest.FixtureRequest) -> Callable[[], dict[str, str]]:
    """Gives the variables of a new control plane: a database and a prefix in the object store, or nothing."""
    kind = getattr(request, "param", "folder")
    if kind == "folder":
        return lambda: {"NUBES_DATABASE": "", "NUBES_OBJECTS": ""}
    if kind == "ray":
        address: str = request.getfixturevalue("ray")
        return lambda: {"NUBES_ON": "ray", "NUBES_ADDRESS": address}
    server: Postgres = request.getfixturevalue("postgres")
    keys: dict[str, str] = request.getfixturevalue("s3")
    return lambda: {"NUBES_DATABASE": server.new(), "NUBES_OBJECTS": f"s3://nubes/{next(_numbers)}", **keys}
