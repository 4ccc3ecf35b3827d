"""What is broken when: a schedule of faults from a seed. Plain data; the same seed gives the same schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nubes.kernel.errors import UsageError
from nubes.kernel.rng import rng

SHORT, LONG = (0.2, 3.0), (11.0, 15.0)  # seconds: less than a machine's lease, and more than it takes to be given up

# kind -> (how often, beside the others; how many seconds it lasts; what it is)
FAULTS: dict[str, tuple[float, tuple[float, float], str]] = {
    "kill-instance": (6.0, (0, 0), "kill -9 of an instance"),
    "kill-parent": (2.0, (0, 0), "kill -9 of a parent in the process tree"),
    "kill-plane": (2.0, (0, 0), "kill -9 of the control plane, which is started again on the same folder"),
    "kill-agent": (1.5, (0, 0), "kill -9 of a machine's agent, which is started again"),
    "kill-client": (2.0, (0, 0), "kill -9 of a client; another one takes its place"),
    "stop-instance": (2.0, SHORT, "SIGSTOP of an instance"),
    "stop-parent": (1.0, SHORT, "SIGSTOP of a parent in the process tree"),
    "stop-plane": (1.0, SHORT, "SIGSTOP of the control plane"),
    "stop-plane-long": (0.3, LONG, "SIGSTOP of the control plane, for longer than its machines' leases"),
    "stop-agent": (1.0, SHORT, "SIGSTOP of an agent"),
    "stop-agent-long": (0.3, LONG, "SIGSTOP of an agent, until its machine is given up"),
    "stop-client": (1.0, SHORT, "SIGSTOP of a client"),
    "full-disk": (1.0, (0.5, 3.0), "no space left where the data folder is"),
    "slow-disk": (1.0, (0.5, 4.0), "every flush takes up to half a second longer"),
    "clock-step": (1.0, (0, 0), "the wall clock of all processes of the cloud jumps, to up to ten hours off"),
    "cut": (2.0, (0, 0), "connections of a machine are reset"),
    "half-close": (1.0, (0, 0), "connections of a machine are closed in one direction"),
    "stall": (1.0, SHORT, "connections of a machine carry nothing"),
    "partition": (1.0, SHORT, "a machine can reach nothing, for less than its lease"),
    "partition-long": (0.5, LONG, "a machine can reach nothing, until it is given up"),
}  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """`choice` in [0, 1) says which of those that there are when the time comes, and how hard."""

    at_s: float
    kind: str
    lasts_s: float
    choice: float


def schedule(seed: int, seconds: float, rate: float, kinds: Sequence[str]) -> list[Fault]:
    """Faults of these kinds, `rate` a second on average, in order of time. None lasts beyond the end."""
    chance = rng(seed, "chaos")
    weights = [FAULTS[kind][0] for kind in kinds]
    found: list[Fault] = []
    at = 0.0
    while kinds and rate > 0:
        at += chance.expovariate(rate)
        if at >= seconds:
            break
        (kind,) = chance.choices(kinds, weights)
        least, most = FAULTS[kind][1]
        lasts = chance.uniform(least, most)
        choice = chance.random()
        if at + lasts < seconds:
            found.append(Fault(at, kind, lasts, choice))
    return found


def chosen(words: str, possible: Sequence[str]) -> list[str]:
    """The kinds that `a,b,-c` names: those, or all but those; only the possible ones. Raises `UsageError`."""
    names = [word for word in words.split(",") if word]
    for name in names:
        if name.lstrip("-") not in FAULTS:
            raise UsageError(f"There is no fault {name.lstrip('-')!r}.", f"There are: {', '.join(FAULTS)}.")
    without = {name[1:] for name in names if name.startswith("-")}
    only = {name for name in names if not name.startswith("-")} or set(FAULTS)
    return [kind for kind in possible if kind in only - without]
