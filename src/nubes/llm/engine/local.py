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
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import numpy as np

from nubes.kernel.errors import Overloaded
from nubes.llm.cache.fusing import Blender
from nubes.llm.cache.texts import TextStore
from nubes.llm.declaring import paired
from nubes.llm.engine.asking import MAX_WIDTH, check
from nubes.llm.engine.choice import Choice, Job
from nubes.llm.engine.inputs import host_blocks as room
from nubes.llm.engine.inputs import planned
from nubes.llm.engine.model import Model
from nubes.llm.engine.stream import Stream, hand_over
from nubes.llm.errors import ContextTooLong
from nubes.llm.live import Deltas, Stats, Tokens
from nubes.llm.lora.store import Store
from nubes.llm.scheduling.content import BlockKeys
from nubes.llm.scheduling.scheduler import Scheduler
from nubes.llm.scheduling.sequence import DECODE, Sequence
from nubes.llm.scheduling.step import Step
from nubes.llm.spec import Delta, Finish, Request
from nubes.llm.speculative.stepping import Guesses

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nubes.llm.engine.recording import Recorder
    from nubes.llm.runtime.rows import Runtime
    from nubes.llm.seams import Fusion, Restoration, Retention, Speculation

SHED = "The engine is overloaded: the request was refused while it waited."
NAN = "The model's output is not a number: this prompt, or the weights, break it."


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
        restoration: str | Restoration | None = None,
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
        retention = paired(retention, restoration, fusion)
        self.plan = planned(runtime, restoration)
        if self.plan is not None and host_blocks is None:
            host_blocks = room(runtime, self.plan)
        self._schedule = partial(
            Scheduler, runtime.blocks, block_size=runtime.block_size, host_blocks=host_blocks, batching=batching,
            ordering=ordering, preemption=preemption, retention=retention, speculation=speculation,
            adapters=self.store.sizes,
        )  # fmt: skip
        self.scheduler = self._schedule()
        self.blender: Blender | None = None
        if fusion is not None:
            texts = texts or TextStore(None, runtime.blocks * runtime.block_bytes)  # as much again as KV takes
            self.blender = Blender(runtime, texts, fusion, model=name)
        self._model = Model(runtime, self.store, self.scheduler.state.host.size, self.blender, self.plan)
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

    # -- for those who ask ----------------------------------------------------------------------------------------

    def generate(self, request: Request) -> Deltas:
        """Deltas of all choices as they come. Raises `UsageError`, `ContextTooLong` or `Overloaded` at once."""
        check(request, self.tokens, self.context)
        if len(self._jobs) >= self.max_waiting + self.scheduler.state.running:
            raise Overloaded(f"{len(self._jobs)} requests wait or run already.", "Try again a little later.")
        job = Job(request, asyncio.get_running_loop())
        job.request.arrived_s = monotonic()
        if request.adapter:
            job.adapter = self.store.get(request.adapter)
        self._limit(request, job.adapter.key if job.adapter is not None else "")
        if not self._jobs:
            self._progress_s = monotonic()  # idle until now, which is no stall
        self._jobs.add(job)
        self._send("arrive", job)
        return Stream(job, self._left)

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
        if job not in self._jobs:
            return
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
        scored = request.sampling.prompt_logprobs is not None  # then all of it is computed
        sequence = Sequence(
            self._ids, len(request.prompt), limit, arrived_s=request.arrived_s, keys=() if scored else keys.keys,
            width=request.n, priority=request.priority, user=request.user, session=request.session, adapter=adapter,
            work=request.work,
        )  # fmt: skip
        choice = Choice(job, 0, sequence, list(request.prompt), keys, self.tokens, self._seed(job))
        job.choices.append(choice)
        self._choices[sequence.id] = choice
        self._counts.prompt_tokens += len(request.prompt)
        if job.said:
            choice.resume(job.said)
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
        scheduler = self.scheduler
        begun = monotonic()
        for chunk in step.chunks:
            job = self._choices[chunk.sequence.id].job
            if job.queued_s is None:
                job.queued_s = begun - job.request.arrived_s
        guesses = Guesses(scheduler, step, self._choices)
        logits, heads = self._model.run(step, scheduler.state, self._choices, guesses.trees)
        self._counts.steps += 1
        started = scheduler.complete(step, monotonic())
        for sequence in started:
            if sequence.id in self._choices:
                sequence.keys = self._choices[sequence.id].keys.keys
            else:
                parent = self._choices[sequence.group]
                self._choices[sequence.id] = parent.fork(sequence, self._seed(parent.job))
        places = {sequence.id: at for at, sequence in enumerate(heads)}
        for sequence in started:  # a fork has the logits of the sequence it was forked from
            places.setdefault(sequence.id, places.get(sequence.group, 0))
        fresh = {sequence.id for sequence in started}
        self._emit([s for s in heads if s.id not in fresh] + started, logits, places, guesses)

    def _emit(
        self, sequences: list[Sequence], logits: NDArray[np.float32], places: dict[int, int], guesses: Guesses
    ) -> None:
        """Chooses a token for every sequence that has logits, more where guesses hold, and tells whoever waits."""
        now = monotonic()
        told: list[tuple[Job, Delta]] = []
        finite = np.isfinite(np.asarray(logits).sum(axis=1))  # a NaN anywhere in a row makes its sum one
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
                deltas[0].prompt, choice.scores = choice.scores, None
            told += [(choice.job, delta) for delta in deltas]
            if deltas[-1].finish is not None:
                self.scheduler.finish(sequence, now)
                del self._choices[sequence.id]
                if self.recorder is not None:
                    self.recorder.request(sequence, now, deltas[-1].finish)
        guesses.settle(self.runtime)
        if self._model.inputs is not None:
            self._model.inputs.shift(guesses.moves)
        if self.recorder is not None and guesses.paths:
            self.recorder.guesses(guesses.paths)
        self._counts.generation_tokens += len(told)
        self._tell(told)

    def _tell(self, told: list[tuple[Job, Delta]]) -> None:
        for job in hand_over(told):
            self._send("cancel", job)
