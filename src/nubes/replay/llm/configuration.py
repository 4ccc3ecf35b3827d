"""What to serve a workload with: a step model, a policy for each seam of the engine, and how many engines."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import msgspec

from nubes.drivers.sim.llm import Instance
from nubes.drivers.sim.llm.guessing import Guessing
from nubes.drivers.sim.llm.stages import Stages
from nubes.kernel.errors import UsageError
from nubes.kernel.policy import SEAMS, find
from nubes.kernel.rng import rng
from nubes.llm import seams  # noqa: F401  (they are open once it is imported)
from nubes.llm.models import gpu_facts
from nubes.llm.scheduling.load import StepModel
from nubes.llm.scheduling.scheduler import Scheduler

ENGINE_SEAMS = ("batching", "ordering", "preemption", "retention", "speculation")
DEFAULTS = {seam: SEAMS[seam].default for seam in ENGINE_SEAMS}
HITS = ((0.5, 0.2, 0.08),)  # an assumption: what `specinfer` starts with, too
CPU_DOLLARS_PER_HOUR = 0.0893  # an assumption: AWS c7i.large, two vCPUs, us-east-1, on demand, 2024
MOVE_BYTES_PER_S = 10e9  # of a CPU's memory, where KV that gives way is copied within it


class Configuration(msgspec.Struct, frozen=True):
    """A step model's name and policy texts. "" is what was live in a recording; over a trace, the default.

    `host_tokens`: room for KV that was swapped out. `dollars_per_hour`: of one device; None: its list price. `hits`: by
    depth and rank, how likely a guess holds; (): as recorded, or else assumed.
    """

    llm: str
    batching: str = ""
    ordering: str = ""
    preemption: str = ""
    retention: str = ""
    instances: int = 1
    block_size: int = 16
    host_tokens: int = 0
    dollars_per_hour: float | None = None
    speculation: str = ""
    hits: tuple[tuple[float, ...], ...] = ()

    def filled(
        self, live: Mapping[str, str] = DEFAULTS, hits: tuple[tuple[float, ...], ...] = ()
    ) -> Configuration:  # fmt: skip
        """With a policy named at every seam. `hits`: as they were live."""
        named = {seam: getattr(self, seam) or live.get(seam, DEFAULTS[seam]) for seam in ENGINE_SEAMS}
        return msgspec.structs.replace(self, **named, hits=self.hits or hits)

    def engines(self, model: StepModel, seed: int = 0) -> list[Instance]:
        """Fresh engines. A pipeline of several stages is as many engines that take turns, each with its share of KV.

        Raises `UnknownPolicy` or `UsageError` on a text that makes no policy.
        """
        blocks = model.kv_tokens // self.block_size // model.stages
        if blocks < 1:
            raise UsageError(f"{model.name} has no room for a block of KV.", "Use a smaller block size.")
        made: list[Instance] = []
        for _ in range(self.instances):
            stages = Stages(model.stages) if model.stages > 1 else None
            for _ in range(model.stages):
                scheduler = Scheduler(
                    blocks, block_size=self.block_size, host_blocks=self.host_tokens // self.block_size,
                    batching=self.batching or None, ordering=self.ordering or None,
                    preemption=self.preemption or None, retention=self.retention or None,
                    speculation=self.speculation or None,
                )  # fmt: skip
                guessing = Guessing(self.hits or HITS, draw=rng(seed, f"guesses {len(made)}")) if self.guesses else None
                block_s = self.block_size * model.kv_bytes / link(model)
                made.append(Instance(scheduler, model, block_s, stages=stages, guessing=guessing))
        return made

    @property
    def guesses(self) -> bool:
        return (self.speculation or DEFAULTS["speculation"]) != DEFAULTS["speculation"]

    def describe(self, model: StepModel) -> str:
        """What its figures rest on."""
        if not self.guesses:
            return model.describe()
        first = ", ".join(f"{rate:.0%}" for rate in (self.hits or HITS)[0])
        known = "as often as recorded or said" if self.hits else "as often as is assumed"
        return f"{model.describe()} Guesses hold {known}: by rank, the first ones {first}."

    def price(self, model: StepModel) -> float:
        """Dollars an hour of all engines."""
        each = self.dollars_per_hour
        if each is None:
            each = CPU_DOLLARS_PER_HOUR if model.gpu == "cpu" else gpu_facts(model.gpu).dollars_per_hour
        return each * model.devices * self.instances

    def label(self, among: Sequence[Configuration] = ()) -> str:
        """The words that tell this configuration from those it is compared with."""
        fields = [
            f for f in ("llm", *ENGINE_SEAMS, "instances", "block_size") if len({getattr(c, f) for c in among}) > 1
        ] or ["batching"]
        return " + ".join(_show(field, getattr(self, field)) for field in fields)


def _show(field: str, value: str | int) -> str:
    if field == "instances":
        return f"{value} engine{'s' if value != 1 else ''}"
    return f"blocks of {value}" if field == "block_size" else str(value)


def link(model: StepModel) -> float:
    """Bytes a second of KV to host memory or back."""
    return MOVE_BYTES_PER_S if model.gpu == "cpu" else gpu_facts(model.gpu).host_link * model.devices


def configurations(
    llm: Sequence[str],
    batching: Sequence[str] = ("",),
    ordering: Sequence[str] = ("",),
    preemption: Sequence[str] = ("",),
    retention: Sequence[str] = ("",),
    instances: Sequence[int] = (1,),
    block_size: Sequence[int] = (16,),
    host_tokens: int = 0,
    dollars_per_hour: float | None = None,
    speculation: Sequence[str] = ("",),
    hits: tuple[tuple[float, ...], ...] = (),
) -> list[Configuration]:
    """Every combination of what is named, all policies checked."""
    for seam, texts in zip(ENGINE_SEAMS, (batching, ordering, preemption, retention, speculation), strict=True):
        for text in filter(None, texts):
            find(seam, text.partition("(")[0].strip())
    if min(instances) < 1 or min(block_size) < 1:
        raise UsageError("Instances and block sizes start at 1.", "Leave the option out, or give a larger number.")
    if any(min(ranks) < 0 or sum(ranks) > 1 for ranks in hits):
        raise UsageError(
            "Guesses of all ranks cannot hold more often than always.", "Shares add up to 1 at most: 0.6,0.1."
        )
    combined = itertools.product(llm, batching, ordering, preemption, retention, instances, block_size)
    return [
        Configuration(*each, host_tokens, dollars_per_hour, guessing, hits)
        for each, guessing in itertools.product(combined, speculation)
    ]
