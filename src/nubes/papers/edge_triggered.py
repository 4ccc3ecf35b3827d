"""What reconciliation is compared with: commands in a queue, each done once.

Commands are durable and so is what is known to run. But a command is taken and then done, or the other way round, and
whoever is killed in between has lost it, or does it twice.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time

from nubes.cluster.processes import LOOK_S, MARK


def queue(path: str) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, timeout=60.0)
    db.execute("PRAGMA journal_mode = wal")
    db.execute("PRAGMA synchronous = normal")
    db.execute("CREATE TABLE IF NOT EXISTS commands (number INTEGER PRIMARY KEY, deployment TEXT, start INTEGER)")
    db.execute("CREATE TABLE IF NOT EXISTS running (pid INTEGER, deployment TEXT)")
    return db


def work(path: str, mark: str, command: list[str]) -> None:
    """Does commands as they come, until it is killed."""
    db = queue(path)
    children: list[subprocess.Popen[bytes]] = []
    while True:
        row = db.execute("SELECT number, deployment, start FROM commands ORDER BY number LIMIT 1").fetchone()
        if row is None:
            children = [child for child in children if child.poll() is None]
            time.sleep(LOOK_S)
            continue
        number, deployment, start = row
        db.execute("DELETE FROM commands WHERE number = ?", (number,))
        if start:
            env = {**os.environ, MARK: f"{mark}/{deployment}"}
            child = subprocess.Popen(command, env=env, start_new_session=True, stdin=subprocess.DEVNULL)
            children.append(child)
            db.execute("INSERT INTO running VALUES (?, ?)", (child.pid, deployment))
            continue
        known = db.execute("SELECT pid FROM running WHERE deployment = ? LIMIT 1", (deployment,)).fetchone()
        if known is not None:
            db.execute("DELETE FROM running WHERE pid = ?", known)
            try:
                os.killpg(known[0], signal.SIGTERM)
            except ProcessLookupError:
                pass


if __name__ == "__main__":
    work(sys.argv[1], sys.argv[2], sys.argv[3:])
