"""What to replay under: a policy for each seam, and what the machine has to give."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from math import inf

import msgspec

from nubes.functions.controller import Functions
from nubes.kernel.policy import SEAMS, find

DEFAULTS = {seam: SEAMS[seam].default for seam in ("keep-alive", "queueing", "placement")} | {"cold-start": "fresh"}


class Configuration(msgspec.Struct, frozen=True):
    """Policy texts, and how many machines of what capacity.

    "" is what was live in a recording; over a trace, the default. That default starts every instance in a fresh
    interpreter: traces do not tell what imports take. Balancing and hedging that are "" stay as each function had them.
    """

    keep_alive: str = ""
    queueing: str = ""
    cold_start: str = ""
    cpu: float = inf
    memory_bytes: float = inf
    placement: str = ""
    machines: int = 1
    balancing: str = ""
    hedging: str = ""

    def filled(self, live: Mapping[str, str] = DEFAULTS) -> Configuration:
        """With a policy named at every seam."""
        return msgspec.structs.replace(
            self,
            keep_alive=self.keep_alive or live["keep-alive"],
            queueing=self.queueing or live["queueing"],
            cold_start=self.cold_start or live["cold-start"],
            placement=self.placement or live["placement"],
        )

    @property
    def gives_way(self) -> tuple[str, ...]:
        """The seams at which what functions chose for themselves gives way to this."""
        named = {"balancing": self.balancing, "hedging": self.hedging}
        return ("keep-alive", *(seam for seam, text in named.items() if text))

    @property
    def limited(self) -> bool:
        return self.cpu < inf or self.memory_bytes < inf

    def controller(self) -> Functions:
        """A controller of its own. Raises `UnknownPolicy` or `UsageError` on a text that makes no policy."""
        return Functions(
            self.keep_alive, self.queueing, self.cold_start, self.cpu, self.memory_bytes,
            placement=self.placement, machines=self.machines,
            balancing=self.balancing or None, hedging=self.hedging or None,
        )  # fmt: skip

    def label(self, among: Sequence[Configuration] = ()) -> str:
        """The words that tell this configuration from those it is compared with."""
        fields = (
            "keep_alive", "queueing", "cold_start", "placement", "balancing", "hedging", "machines", "cpu",
            "memory_bytes",
        )  # fmt: skip
        differ = [f for f in fields if len({getattr(c, f) for c in among}) > 1] or ["keep_alive"]
        return " + ".join(_show(field, getattr(self, field)) for field in differ)


def _show(field: str, value: str | float) -> str:
    if field == "machines":
        return f"{value} machine{'s' if value != 1 else ''}"
    from nubes.kernel.units import show_bytes

    if isinstance(value, str):
        return value or f"{field} as it was"
    if value == inf:
        return "unlimited " + ("memory" if field == "memory_bytes" else "CPU")
    return show_bytes(value) if field == "memory_bytes" else f"{value:g} CPU"


def configurations(
    keep_alive: Sequence[str] = ("",),
    queueing: Sequence[str] = ("",),
    cold_start: Sequence[str] = ("",),
    cpu: float = inf,
    memory_bytes: float = inf,
    placement: Sequence[str] = ("",),
    machines: Sequence[int] = (1,),
    balancing: Sequence[str] = ("",),
    hedging: Sequence[str] = ("",),
) -> list[Configuration]:
    """Every combination of the policies named, all of them checked."""
    for seam, texts in (
        ("keep-alive", keep_alive), ("queueing", queueing), ("cold-start", cold_start), ("placement", placement),
        ("balancing", balancing), ("hedging", hedging),
    ):  # fmt: skip
        for text in filter(None, texts):
            find(seam, text.partition("(")[0].strip())
    combined = itertools.product(keep_alive, queueing, cold_start, placement, machines, balancing, hedging)
    return [Configuration(ka, q, cs, cpu, memory_bytes, place, n, b, h) for ka, q, cs, place, n, b, h in combined]
