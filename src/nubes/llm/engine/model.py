"""A step, done: blocks moved and copied, adapters fetched, rows run, texts put together."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from nubes.llm.engine.host import HostMemory
from nubes.llm.engine.inputs import Inputs
from nubes.llm.engine.ragged import ragged
from nubes.llm.lora.paging import Fill
from nubes.llm.lora.segments import Placed
from nubes.llm.lora.store import Store
from nubes.llm.runtime.slots import as_rows
from nubes.llm.scheduling.sequence import Sequence
from nubes.llm.scheduling.state import State
from nubes.llm.scheduling.step import Step

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nubes.llm.cache.fusing import Blender
    from nubes.llm.cache.restoration import Plan
    from nubes.llm.engine.choice import Choice
    from nubes.llm.runtime.rows import Runtime
    from nubes.llm.speculative.tree import Tree

SCORED = 64  # rows of logits at a time, where those of a whole prompt are wanted


class Model:
    """What an engine does with a runtime. `host_blocks`: room in host memory; `blender`: for prompts made of texts.

    `plan`: what of a block goes to host memory, if not all of its KV.
    """

    def __init__(
        self, runtime: Runtime, store: Store, host_blocks: int, blender: Blender | None, plan: Plan | None = None
    ) -> None:  # fmt: skip
        self.runtime = runtime
        self.store = store
        self.blender = blender
        self.inputs = Inputs(runtime, plan, host_blocks) if plan is not None else None
        self._host = self.inputs or HostMemory(runtime, host_blocks)
        self._filler = ThreadPoolExecutor(1, "nubes-llm-adapters")  # starts its thread when it is used

    def run(
        self, step: Step, state: State, choices: Mapping[int, Choice], trees: Mapping[int, Tree]
    ) -> tuple[NDArray[np.float32], list[Sequence]]:
        """Logits [n, vocab], and the sequences whose next tokens the first of them are for; those of `trees` follow."""
        if step.load.moved:
            self._host.move(step.loads, step.saves)
        if self.inputs is not None:
            for each in step.restored:
                name = each.sequence.adapter
                placed_at = self.store.placed(name, each.adapter) if name else None
                self.inputs.restore(each, choices[each.sequence.id].text, placed_at)
            self.inputs.copy(step.copies)
        if step.copies:
            self.runtime.copy_blocks(step.copies)
        filling = self._filler.submit(self._fill, step.fills) if step.fills else None
        blended = [chunk for chunk in step.chunks if blends(choices[chunk.sequence.id])] if self.blender else []
        others = step if not blended else step.without(blended)

        def placed(key: str) -> Placed:
            return self.store.placed(key, state.adapters.held[key])

        tokens, rows, outputs, heads = ragged(others, state, lambda sequence: choices[sequence.id].text, placed, trees)
        try:
            kept = self.inputs.room(len(tokens)) if self.inputs is not None else None
            if any(choices[chunk.sequence.id].scores is not None for chunk in others.chunks):
                x = self.runtime.embed(tokens)
                self.runtime.forward(x, rows, keep=kept)
                logits = self.runtime.logits(x, outputs)
                self._score(x, others, choices)
            else:
                logits = self.runtime.step(tokens, rows, outputs, kept) if len(tokens) else np.zeros((0, 1), np.float32)
            if self.inputs is not None and kept is not None:
                self.inputs.put(kept, rows)
            for chunk in blended:
                if chunk.last:
                    more = self._blend(choices[chunk.sequence.id])
                    logits = np.concatenate((logits, more)) if len(heads) else more
                    heads.append(chunk.sequence)
        finally:
            if filling is not None:
                filling.result()
        return logits, heads

    def _score(self, x: Any, step: Step, choices: Mapping[int, Choice]) -> None:
        """Tells those who want to know of all their prompt's tokens. `x` [rows, hidden] begins with the chunks."""
        first = 0
        for chunk in step.chunks:
            choice, count = choices[chunk.sequence.id], chunk.end - chunk.start
            for at in range(0, count if choice.scores is not None else 0, SCORED):
                rows = np.arange(first + at, first + min(count, at + SCORED), dtype=np.int32)
                choice.score(chunk.start + at, as_rows(self.runtime.logits(x, rows)))
            first += count

    def _blend(self, choice: Choice) -> NDArray[np.float32]:
        """A whole prompt from its texts; its blocks are all there since it was admitted."""
        assert self.blender is not None
        ends = np.cumsum((0, *choice.job.request.chunks)).tolist()
        texts = [choice.text[start:end] for start, end in pairwise(ends)]
        salt = choice.job.request.cache_salt
        logits = self.blender.fuse(texts, choice.text[ends[-1] :], choice.sequence.blocks, salt)
        choice.sequence.cached = self.blender.reused
        return np.asarray(logits, np.float32)

    def _fill(self, fills: Many[Fill]) -> None:
        """Adapters for later steps, copied while this one runs."""
        for key, nth, block in fills:
            self.runtime.place(self.store.of(key), nth, block)


def blends(choice: Choice) -> bool:
    """Whether a prompt is put together from its texts: at first. If it had to give way, it is computed.

    So it is if all of its tokens are looked at.
    """
    request = choice.job.request
    return bool(request.chunks) and not choice.sequence.preemptions and request.sampling.prompt_logprobs is None
