"""Serves a workload with many configurations in virtual time, side by side where there are cores, and compares them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from nubes.kernel.errors import UsageError
from nubes.llm.models import step_model
from nubes.replay.llm.configuration import DEFAULTS, Configuration
from nubes.replay.llm.report import Report, Result, gap_of, row_of
from nubes.replay.runner import AS_LIVE, Progress, run

if TYPE_CHECKING:
    from nubes.llm.engine.recording import Recording
    from nubes.llm.scheduling.load import StepModel
    from nubes.replay.llm.slo import Slo
    from nubes.workloads.llm import LLMWorkload

RECORDED = "recorded"  # the step model that is fitted to the recording's own steps


class Task:
    """One configuration over one workload. The workload, or what makes it from a seed."""

    def __init__(
        self, number: int, configuration: Configuration, label: str, model: StepModel,
        source: LLMWorkload | Callable[[int], LLMWorkload], seed: int = 0, slo: Slo | None = None,
    ) -> None:  # fmt: skip
        self.number = number
        self.configuration = configuration
        self.label = label
        self.model = model
        self.source = source
        self.seed = seed
        self.slo = slo

    def work(self, tick: Callable[[float], None]) -> Result:
        from nubes.drivers.sim.llm import simulate_llm
        from nubes.replay.llm.measures import Meter, measures
        from nubes.replay.llm.report import boiled

        workload = self.source(self.seed) if callable(self.source) else self.source
        configuration = self.configuration
        meter = Meter(workload.seconds, tick)
        served = simulate_llm(workload, configuration.engines(self.model, self.seed), watch=meter)
        price = configuration.price(self.model)
        return boiled(served, measures(served, meter, configuration.instances, price, self.slo))


def replay_llm(
    workload: LLMWorkload | Recording | Callable[[int], LLMWorkload],
    configurations: Sequence[Configuration],
    *,
    slo: Slo | None = None,
    jobs: int | None = None,
    seeds: Sequence[int] = (0,),
    progress: Progress | None = None,
) -> Report:
    """Serves the workload with every configuration, once for each seed if the workload is made from a seed.

    A recording is first served under the policies that were live then, with a step model fitted to its own steps; how
    far that is from what was measured is the report's gap. At most `jobs` processes run at a time (default: one for
    each core). `progress` is told the share that is done, and of what.
    """
    from nubes.llm.engine.recording import Recording

    if not configurations:
        raise UsageError("There is nothing to compare.", "Name at least one policy: --batching sarathi,vllm.")
    recording = workload if isinstance(workload, Recording) else None
    source = recording.workload if recording is not None else workload
    assert not isinstance(source, Recording)
    live = recording.about.policies if recording is not None else DEFAULTS
    hits = recording.hits if recording is not None else ()
    configurations = [configuration.filled(live, hits) for configuration in configurations]
    if len(set(configurations)) < len(configurations):
        raise UsageError("A configuration is named twice.", "Name each policy once.")
    models = _models(configurations, recording)
    _check(configurations, models, source if not callable(source) else source(seeds[0]))
    labels = [configuration.label(configurations) for configuration in configurations]
    if not callable(source):
        seeds = seeds[:1]  # a fixed workload comes out the same for every seed
    todo: list[Task] = []
    if recording is not None:
        about = recording.about
        as_live = Configuration(RECORDED, block_size=about.block_size).filled(live, hits)
        todo.append(Task(0, as_live, AS_LIVE, _models([as_live], recording)[RECORDED], source))
    for configuration, label in zip(configurations, labels, strict=True):
        model = models[configuration.llm]
        todo += [Task(len(todo) + n, configuration, label, model, source, seed, slo) for n, seed in enumerate(seeds)]
    done: list[Result] = run(todo, jobs, progress)
    gap = None
    if recording is not None:
        gap, todo = gap_of(recording, done.pop(0)), todo[1:]
    rows = []
    for configuration, label in zip(configurations, labels, strict=True):
        model = models[configuration.llm]
        results = [result for result, task in zip(done, todo, strict=True) if task.configuration == configuration]
        rows.append(row_of(label, configuration, configuration.describe(model), configuration.price(model), results))
    return Report(*done[0].about, slo, list(seeds), rows, gap)


def _models(configurations: Sequence[Configuration], recording: Recording | None) -> dict[str, StepModel]:
    """The step models by name, each made once."""
    made: dict[str, StepModel] = {}
    for name in {configuration.llm: None for configuration in configurations}:
        if name == RECORDED:
            if recording is None:
                raise UsageError("There is no recording to fit a step model to.", "Name a step model with --llm.")
            made[name] = recording.fit()
        else:
            made[name] = step_model(name)
    return made


def _check(configurations: Sequence[Configuration], models: Mapping[str, StepModel], workload: LLMWorkload) -> None:
    """What is wrong is an error before anything runs."""
    for configuration in configurations:
        msgspec.structs.replace(configuration, instances=1).engines(models[configuration.llm])
        if workload.blocks is not None and workload.block_tokens % configuration.block_size:
            raise UsageError(
                f"{workload.name} tells what requests share in blocks of {workload.block_tokens} tokens.",
                f"Use a block size that divides it, not {configuration.block_size}.",
            )
