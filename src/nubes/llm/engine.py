"""The engine: a scheduler, a model that runs its steps, and those who wait for tokens.

Steps are made in a thread of their own; requests come from, and deltas go to, any event loop.
"""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Many
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import numpy as np

from nubes.kernel.errors import Overloaded, UsageError
from nubes.llm.cache.fusing import Blender
from nubes.llm.cache.texts import TextStore
from nubes.llm.choice import Choice, Job
from nubes.llm.content import BlockKeys
from nubes.llm.errors import ContextTooLong
from nubes.llm.host import HostMemory
from nubes.llm.live import Deltas, Stats, Tokens
from nubes.llm.lora.paging import Fill
from nubes.llm.lora.segments import Placed
from nubes.llm.lora.store import Store
from nubes.llm.ragged import ragged
from nubes.llm.scheduler import Scheduler
from nubes.llm.sequence import DECODE, Sequence
from nubes.llm.spec import Delta, Finish, Request
from nubes.llm.speculative.stepping import Guesses
from nubes.llm.step import Step

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nubes.llm.recording import Recorder
    from nubes.llm.runtime.rows import Runtime
    from nubes.llm.seams import Fusion, Retention, Speculation

SHED = "The engine is overloaded: the request was refused while it waited."
NAN = "The model's output is not a number: this prompt, or the weights, break it."
MAX_WIDTH = 128  # answers to one prompt


class LocalEngine:
    """Serves one model in this process. Implements `nubes.llm.live.Engine`."""

    def __init__(
        self,
        name: str,
        runtime: Runtime,
        tokens: Tokens,
        *,
        batching: str | None = None,
        ordering: str | None = None,
        preemption: str | None = None,
        retention: str | Retention | None = None,
        speculation: str | Speculation | None = None,
        host_blocks: int | None = None,
        fusion: str | Fusion | None = None,
        texts: TextStore | None = None,
        max_waiting: int = 1024,
        store: Store | None = None,
        seed: int = 0,
        recorder: Recorder | None = None,
    ) -> None:
        self.name = name
        self.tokens = tokens
        self.context = runtime.shape.context
        self.max_waiting = max_waiting
        self.recorder = recorder  # told of every step and answer
        self.runtime = runtime
        self.store = store or Store(runtime)
        self._schedule = partial(
            Scheduler, runtime.blocks, block_size=runtime.block_size, host_blocks=host_blocks, batching=batching,
            ordering=ordering, preemption=preemption, retention=retention, speculation=speculation,
            adapters=self.store.sizes,
        )  # fmt: skip
        self.scheduler = self._schedule()
        self.blender = Blender(runtime, texts or TextStore(None), fusion, model=name) if fusion is not None else None
        self._host = HostMemory(runtime, self.scheduler.state.host.size)
        self._rng = np.random.default_rng(seed)
        self._inbox: deque[tuple[str, Job]] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._choices: dict[int, Choice] = {}
        self._jobs: set[Job] = set()
        self._ids = 0
        self._counts = Stats()
        self._progress_s = monotonic()
        self._stopping = False
        self._filler = ThreadPoolExecutor(1, f"nubes-llm-{name}-adapters")

    # -- for those who ask ----------------------------------------------------------------------------------------

    def generate(self, request: Request) -> Deltas:
        """Deltas of all choices as they come. Raises `UsageError`, `ContextTooLong` or `Overloaded` at once."""
        self._refuse(request)
        job = Job(request, asyncio.get_running_loop())
        job.request.arrived_s = monotonic()
        if request.adapter:
            job.adapter = self.store.get(request.adapter)
        self._limit(request, job.adapter.key if job.adapter is not None else "")
        if not self._jobs:
            self._progress_s = monotonic()  # idle until now, which is no stall
        self._jobs.add(job)
        self._send("arrive", job)
        return _Deltas(self, job)

    @property
    def adapters(self) -> Many[str]:
        """Names of LoRA adapters that requests may ask for."""
        return list(self.store.names)

    def load_adapter(self, name: str, path: str | Path) -> None:
        """Serves the adapter in a folder as PEFT saves it. Raises `UsageError`, `NotFound`, `BrokenModel`."""
        self.store.load(name, path)

    def unload_adapter(self, name: str) -> None:
        """No new request gets it. Raises `NotFound`."""
        self.store.remove(name)

    def _refuse(self, request: Request) -> None:
        sampling, length = request.sampling, len(request.prompt)
        if not request.prompt:
            raise UsageError("The prompt is empty.", "Give at least one token.")
        if not 1 <= request.n <= MAX_WIDTH:
            raise UsageError(f"n={request.n} is out of range.", f"Ask for 1 to {MAX_WIDTH} answers.")
        if request.chunks and (min(request.chunks) < 1 or sum(request.chunks) >= length):
            raise UsageError(
                f"Chunks of {request.chunks} tokens do not fit a prompt of {length}.",
                "Give the length of each text that the prompt begins with, and let something follow them.",
            )
        if request.chunks and request.adapter:
            raise UsageError("A prompt with chunks cannot have an adapter.", "Leave out one of the two.")
        if not all(0 <= token < self.tokens.vocab for token in request.prompt):
            raise UsageError("The prompt holds a token that the model does not have.", f"It has {self.tokens.vocab}.")
        wanted = 1 if sampling.max_tokens is None else sampling.max_tokens
        if length + wanted > self.context:
            asked = f" and the {sampling.max_tokens} tokens asked for" if sampling.max_tokens is not None else ""
            raise ContextTooLong(
                f"The prompt of {length} tokens{asked} exceed{'s' if not asked else ''} the context of {self.context}.",
                "Shorten the prompt, or ask for fewer tokens.",
            )
        if len(self._jobs) >= self.max_waiting + self.scheduler.state.running:
            raise Overloaded(f"{len(self._jobs)} requests wait or run already.", "Try again a little later.")
        if sampling.grammar is not None:
            from nubes.llm.structured import check

            check(sampling.grammar, self.tokens)

    def _limit(self, request: Request, adapter: str) -> int:
        """Tokens that each answer may have. Raises `ContextTooLong` if KV memory has no room for what was asked for."""
        length, asked = len(request.prompt), request.sampling.max_tokens
        limit = min(self.context - length, self.context if asked is None else asked)
        sequence = Sequence(0, length, limit, width=request.n, adapter=adapter)
        if not self.scheduler.fits(sequence) and asked is None:
            blocks = self.runtime.blocks - self.store.sizes.get(adapter, 0)
            sequence.limit = max(1, blocks // request.n * self.runtime.block_size - length)
        if not self.scheduler.fits(sequence):
            size = self.runtime.blocks * self.runtime.block_size
            raise ContextTooLong(
                f"{request.n} x {length} + {limit} tokens do not fit the KV memory of {size}.",
                "Ask for fewer, or start the engine with more kv_memory.",
            )
        return sequence.limit

    def _left(self, job: Job) -> None:
        """Whoever waited for `job` does not any more."""
        self._jobs.discard(job)
        if job.left:
            self._send("cancel", job)

    def _send(self, what: str, job: Job) -> None:
        with self._wake:
            self._inbox.append((what, job))
            self._awake()

    def between(self, call: Callable[[], None]) -> None:
        """Has the engine's thread call something between two steps."""
        with self._wake:
            self._calls.append(call)
            self._awake()

    def _awake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"nubes-llm-{self.name}", daemon=True)
            self._progress_s = monotonic()
            self._thread.start()
        self._wake.notify()

    def stats(self) -> Stats:
        """Counters and gauges, read without stopping the engine."""
        state, counts = self.scheduler.state, self._counts
        return Stats(
            running=state.running,
            waiting=len(state.waiting) + len(state.swapped) + len(self._inbox),
            blocks=state.pool.size,
            free_blocks=state.pool.available,
            prefix_queries=self.scheduler.prefix_queries,
            prefix_hits=self.scheduler.prefix_hits,
            preemptions=self.scheduler.preemptions,
            prompt_tokens=counts.prompt_tokens,
            generation_tokens=counts.generation_tokens,
            steps=counts.steps,
            stalled_s=monotonic() - self._progress_s if self._jobs else 0.0,
        )

    def close(self) -> None:
        """Stops the thread; whoever still waits gets an abort."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()

    # -- the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._inbox or self._calls or self._stopping) and self.scheduler.idle:
                    self._wake.wait()
                    self._progress_s = monotonic()
                inbox, self._inbox = self._inbox, deque()
            if self._stopping:
                self._fail("abort", "The engine was stopped.", [job for _, job in inbox])
                return
            begun = monotonic()
            try:
                for what, job in inbox:
                    self._arrive(job) if what == "arrive" else self._cancel(job)
                while self._calls:
                    self._calls.popleft()()
                step = self._turn()
                if step is not None:
                    took_s = monotonic() - begun
                    self.scheduler.speculation.ran(step.load, took_s)
                    if self.recorder is not None:
                        self.recorder.step(step.load, took_s)
            except Exception as error:  # whatever it was, nobody waits for ever, and the next request finds an engine
                traceback.print_exc()
                self._fail("error", f"The engine failed: {type(error).__name__}.", [job for _, job in inbox])
                self.scheduler = self._schedule()
            self._progress_s = monotonic()

    def _turn(self) -> Step | None:
        """The next step, if there is one."""
        step = self.scheduler.compose(monotonic())
        for sequence in self.scheduler.shed:
            self._drop(sequence, "abort", SHED)
        self.scheduler.shed.clear()
        if step is not None:
            self._step(step)
        return step

    def _arrive(self, job: Job) -> None:
        choice = None if job.gone else self._choice(job)
        if choice is not None:
            self.scheduler.arrive(choice.sequence, monotonic())

    def _choice(self, job: Job) -> Choice | None:
        """The first answer to a request, with what it has from elsewhere; None if it does not fit, which is told."""
        request = job.request
        adapter = job.adapter.key if job.adapter is not None else ""
        try:
            limit = self._limit(request, adapter)
        except ContextTooLong as error:
            self._tell([(job, Delta(index, finish="error", error=error.message)) for index in range(request.n)])
            return None
        self._ids += MAX_WIDTH
        own = f"\0{self._ids}" if request.chunks and self.blender is not None else ""  # it is not what others compute
        keys = BlockKeys(self.runtime.block_size, request.cache_salt + own, adapter)
        keys.extend(request.prompt)
        sequence = Sequence(
            self._ids, len(request.prompt), limit, arrived_s=request.arrived_s, keys=keys.keys, width=request.n,
            priority=request.priority, user=request.user, session=request.session, adapter=adapter,
            work=request.work,
        )  # fmt: skip
        choice = Choice(job, 0, sequence, list(request.prompt), keys, self.tokens, self._seed(job))
        job.choices.append(choice)
        self._choices[sequence.id] = choice
        self._counts.prompt_tokens += len(request.prompt)
        if job.said:
            choice.resume(job.said, job.state)
            sequence.resume(len(choice.text))
        return choice

    def _seed(self, job: Job) -> int:
        seed = job.request.sampling.seed
        return int(self._rng.integers(1 << 32)) if seed is None else seed & 0xFFFFFFFF

    def _cancel(self, job: Job) -> None:
        job.gone = True
        for choice in job.choices:
            if self._choices.pop(choice.sequence.id, None) is not None:
                self.scheduler.cancel(choice.sequence, monotonic())
                if self.recorder is not None:
                    self.recorder.request(choice.sequence, monotonic(), "abort")

    def _drop(self, sequence: Sequence, finish: Finish, why: str) -> None:
        """Nothing more comes of a sequence that the scheduler has let go of."""
        choice = self._choices.pop(sequence.id)
        job = choice.job
        width = job.request.n if len(job.choices) == 1 else 1
        first = choice.answer.index
        self._tell([(job, Delta(first + n, finish=finish, error=why)) for n in range(width)])

    def _fail(self, finish: Finish, why: str, jobs: list[Job]) -> None:
        for choice in list(self._choices.values()):
            self._drop(choice.sequence, finish, why)
        new = [job for job in jobs if not job.choices]
        self._tell([(job, Delta(n, finish=finish, error=why)) for job in new for n in range(job.request.n)])

    def _step(self, step: Step) -> None:
        scheduler, runtime = self.scheduler, self.runtime
        begun = monotonic()
        for chunk in step.chunks:
            job = self._choices[chunk.sequence.id].job
            if job.queued_s is None:
                job.queued_s = begun - job.request.arrived_s
        if step.load.moved:
            self._host.move(step.loads, step.saves)
        if step.copies:
            runtime.copy_blocks(step.copies)
        guesses = Guesses(scheduler, step, self._choices)
        filling = self._filler.submit(self._fill, step.fills) if step.fills else None
        blended = [chunk for chunk in step.chunks if self._blends(chunk.sequence)] if self.blender is not None else []
        others = step if not blended else step.without(blended)
        tokens, rows, outputs, heads = ragged(
            others, scheduler.state, lambda sequence: self._choices[sequence.id].text, self._placed, guesses.trees
        )
        try:
            logits = runtime.step(tokens, rows, outputs) if len(tokens) else np.zeros((0, 1), np.float32)
            for sequence in [chunk.sequence for chunk in blended if chunk.last]:
                more = self._blend(sequence)
                logits = np.concatenate((logits, more)) if len(heads) else more
                heads.append(sequence)
        finally:
            if filling is not None:
                filling.result()
        self._counts.steps += 1
        started = scheduler.complete(step, monotonic())
        for sequence in started:
            if sequence.id not in self._choices:
                parent = self._choices[sequence.group]
                self._choices[sequence.id] = parent.fork(sequence, self._seed(parent.job))
        places = {sequence.id: at for at, sequence in enumerate(heads)}
        for sequence in started:  # a fork has the logits of the sequence it was forked from
            places.setdefault(sequence.id, places.get(sequence.group, 0))
        fresh = {sequence.id for sequence in started}
        self._emit([s for s in heads if s.id not in fresh] + started, logits, places, guesses)

    def _blends(self, sequence: Sequence) -> bool:
        """Whether a prompt is put together from its texts: at first. If it had to give way, it is computed."""
        return bool(self._choices[sequence.id].job.request.chunks) and not sequence.preemptions

    def _blend(self, sequence: Sequence) -> NDArray[np.float32]:
        """A whole prompt from its texts; its blocks are all there since it was admitted."""
        assert self.blender is not None
        choice = self._choices[sequence.id]
        ends = np.cumsum((0, *choice.job.request.chunks)).tolist()
        texts = [choice.text[start:end] for start, end in pairwise(ends)]
        return np.asarray(self.blender.fuse(texts, choice.text[ends[-1] :], sequence.blocks), np.float32)

    def _placed(self, key: str) -> Placed:
        return self.store.placed(key, self.scheduler.state.adapters.held[key])

    def _fill(self, fills: Many[Fill]) -> None:
        """Adapters for later steps, copied while this one runs."""
        for key, nth, block in fills:
            self.runtime.place(self.store.of(key), nth, block)

    def _emit(
        self, sequences: list[Sequence], logits: NDArray[np.float32], places: dict[int, int], guesses: Guesses
    ) -> None:
        """Chooses a token for every sequence that has logits, more where guesses hold, and tells whoever waits."""
        now = monotonic()
        told: list[tuple[Job, Delta]] = []
        finite = np.isfinite(logits.sum(axis=1))  # a NaN anywhere in a row makes its sum one
        for sequence in sequences:
            choice = self._choices.get(sequence.id)
            if choice is None or sequence.state != DECODE:
                continue
            row = places[sequence.id]
            if not finite[row]:
                sequence.keys = ()
                self.scheduler.finish(sequence, now)
                self._drop(sequence, "error", NAN)
                continue
            deltas = guesses.verified(choice, logits, row, finite)
            if not choice.told:
                choice.told = True
                deltas[0].cached, deltas[0].queued_s = sequence.cached, choice.job.queued_s
            told += [(choice.job, delta) for delta in deltas]
            if deltas[-1].finish is not None:
                self.scheduler.finish(sequence, now)
                del self._choices[sequence.id]
                if self.recorder is not None:
                    self.recorder.request(sequence, now, deltas[-1].finish)
        guesses.settle(self.runtime)
        self._counts.generation_tokens += len(told)
        self._tell(told)

    def _tell(self, told: list[tuple[Job, Delta]]) -> None:
        """Hands deltas over to the event loops of those who wait: one call for each loop and step."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Job, Delta]]] = {}
        for job, delta in told:
            by_loop.setdefault(job.loop, []).append((job, delta))
        for loop, batch in by_loop.items():
            try:
                loop.call_soon_threadsafe(_hand_over, batch)
            except RuntimeError:  # the loop is closed: nobody waits any more
                for job, _ in batch:
                    self._send("cancel", job)


class _Deltas:
    """What a request gets, as it comes. Left early, by `aclose` or by nobody holding it, the request is cancelled."""

    def __init__(self, engine: LocalEngine, job: Job) -> None:
        self._engine = engine
        self._job = job

    def __aiter__(self) -> _Deltas:
        return self

    async def __anext__(self) -> Delta:
        job = self._job
        if not job.left:
            raise StopAsyncIteration
        try:
            delta = await job.deltas.get()
        except BaseException:  # whoever waited was cancelled
            await self.aclose()
            raise
        if delta.finish is not None:
            job.left -= 1
            if not job.left:
                await self.aclose()
        return delta

    async def aclose(self) -> None:
        if self._job in self._engine._jobs:
            self._engine._left(self._job)
        self._job.left = 0

    def __del__(self) -> None:
        if self._job in self._engine._jobs:
            self._engine._left(self._job)


def _hand_over(batch: list[tuple[Job, Delta]]) -> None:
    for job, delta in batch:
        job.deltas.put_nowait(delta)
