"""An engine of the simulation: a scheduler, and the hardware under it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from nubes.drivers.sim.llm.guessing import Guessing
from nubes.drivers.sim.llm.stages import Stages
from nubes.llm.scheduling.load import StepModel
from nubes.llm.scheduling.scheduler import Scheduler
from nubes.llm.scheduling.sequence import Sequence
from nubes.llm.scheduling.step import Step


@dataclass(slots=True)
class Instance:
    """A scheduler and the hardware under it. `block_s`: seconds to move a block to host memory, or back.

    With `overlap` blocks move beside the computation, layer by layer and both ways at once, and a step takes as long as
    the slowest of the three; otherwise the computation waits for them.
    `stages`: the pipeline its steps pass through, where there is one; `pipelined` makes the instances that share it.
    """

    scheduler: Scheduler
    model: StepModel
    block_s: float = 0.0
    overlap: bool = False
    stages: Stages | None = None
    guessing: Guessing | None = None  # how guesses fare, where the scheduler's speculation makes any
    step: Step | None = None
    ends: dict[int, list[Sequence]] = field(default_factory=dict)  # decode step -> who gets its last token in it
    fresh: list[tuple[float, Sequence]] = field(default_factory=list)  # who joined the decodes since their last step
    decoded_s: float = 0.0  # when the last decode step ended
    steps: int = 0
    busy_s: float = 0.0
    rows: int = 0


def pipelined(model: StepModel, make: Callable[[], Scheduler]) -> list[Instance]:
    """One instance for each step that the model's stages can have under way; they share the stages, not the memory."""
    stages = Stages(model.stages)
    return [Instance(make(), model, stages=stages) for _ in range(model.stages)]
