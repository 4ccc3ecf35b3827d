"""The engine: a scheduler, a model that runs its steps, and those who wait for tokens.

Steps are made in a thread of their own; requests come from, and deltas go to, any event loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator
from collections.abc import Sequence as Many
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np

from nubes.kernel.errors import Overloaded, UsageError
from nubes.llm.answer import Answer
from nubes.llm.content import BlockKeys
from nubes.llm.errors import ContextTooLong
from nubes.llm.live import Stats, Tokens
from nubes.llm.ragged import ragged
from nubes.llm.sampling import Sampler, likeliest, log_softmax
from nubes.llm.scheduler import Scheduler
from nubes.llm.sequence import DECODE, Sequence
from nubes.llm.spec import Delta, Request, TokenLogprob
from nubes.llm.step import Step

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nubes.llm.runtime.rows import Runtime
    from nubes.llm.seams import Retention
    from nubes.llm.structured import Constraint

MAX_WIDTH = 128  # answers to one prompt


class _Job:
    """A request and whoever waits for its deltas."""

    def __init__(self, request: Request, loop: asyncio.AbstractEventLoop) -> None:
        self.request = request
        self.loop = loop
        self.deltas: asyncio.Queue[Delta] = asyncio.Queue()
        self.choices: list[_Choice] = []
        self.left = request.n
        self.queued_s: float | None = None
        self.gone = False

    def put(self, delta: Delta) -> None:
        self.deltas.put_nowait(delta)


class _Choice:
    """One answer: its sequence in the scheduler, its tokens, and how the next one is chosen."""

    def __init__(
        self, job: _Job, index: int, sequence: Sequence, tokens: list[int], keys: BlockKeys, engine: LocalEngine
    ):
        request = job.request
        sampling = request.sampling
        self.job = job
        self.sequence = sequence
        self.tokens = tokens
        self.keys = keys
        seed = (sampling.seed & 0xFFFFFFFF, index) if sampling.seed is not None else (engine.draw(), index)
        self.sampler = Sampler(sampling, request.prompt, seed)
        self.answer = Answer(index, sampling, engine.tokens, sequence.limit)
        self.constraint: Constraint | None = engine.constraint(sampling.grammar) if sampling.grammar else None
        self.told = False


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
        host_blocks: int = 0,
        max_waiting: int = 1024,
        seed: int = 0,
    ) -> None:
        self.name = name
        self.tokens = tokens
        self.context = runtime.shape.context
        self.adapters: Many[str] = ()
        self.max_waiting = max_waiting
        self.runtime = runtime
        self.host_blocks = host_blocks
        self._host = host_memory(runtime, host_blocks)
        self._policies: dict[str, Any] = {
            "batching": batching, "ordering": ordering, "preemption": preemption, "retention": retention
        }  # fmt: skip
        self.scheduler = self._schedule()
        self._rng = np.random.default_rng(seed)
        self._inbox: deque[tuple[str, _Job]] = deque()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._choices: dict[int, _Choice] = {}
        self._jobs: set[_Job] = set()
        self._ids = 0
        self._counts = Stats()
        self._progress_s = monotonic()
        self._stopping = False

    def _schedule(self) -> Scheduler:
        return Scheduler(
            self.runtime.blocks, block_size=self.runtime.block_size, host_blocks=self.host_blocks, **self._policies
        )  # fmt: skip

    def draw(self) -> int:
        return int(self._rng.integers(1 << 32))

    def constraint(self, grammar: object) -> Constraint:
        from nubes.llm.structured import Constraint

        return Constraint(grammar, self.tokens)  # type: ignore[arg-type]

    # -- for those who ask ----------------------------------------------------------------------------------------

    def generate(self, request: Request) -> AsyncIterator[Delta]:
        """Deltas of all choices as they come. Raises `UsageError`, `ContextTooLong` or `Overloaded` at once."""
        self._refuse(request)
        job = _Job(request, asyncio.get_running_loop())
        job.request.arrived_s = monotonic()
        self._jobs.add(job)
        self._send("arrive", job)
        return self._deltas(job)

    def _refuse(self, request: Request) -> None:
        sampling, length = request.sampling, len(request.prompt)
        if not request.prompt:
            raise UsageError("The prompt is empty.", "Give at least one token.")
        if not 1 <= request.n <= MAX_WIDTH:
            raise UsageError(f"n={request.n} is out of range.", f"Ask for 1 to {MAX_WIDTH} answers.")
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
            self.constraint(sampling.grammar)  # a bad one is an error now, not later

    async def _deltas(self, job: _Job) -> AsyncIterator[Delta]:
        try:
            while job.left:
                delta = await job.deltas.get()
                if delta.finish is not None:
                    job.left -= 1
                yield delta
        finally:
            self._jobs.discard(job)
            if job.left:
                self._send("cancel", job)

    def _send(self, what: str, job: _Job) -> None:
        with self._wake:
            self._inbox.append((what, job))
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
                while not self._inbox and self.scheduler.idle and not self._stopping:
                    self._wake.wait()
                    self._progress_s = monotonic()
                inbox, self._inbox = self._inbox, deque()
            if self._stopping:
                self._fail("abort", "The engine was stopped.", [job for _, job in inbox])
                return
            for what, job in inbox:
                self._arrive(job) if what == "arrive" else self._cancel(job)
            step = self.scheduler.compose(monotonic())
            for sequence in self.scheduler.shed:
                self._drop(sequence, "abort", "The engine is overloaded: the request was refused while it waited.")
            self.scheduler.shed.clear()
            if step is None:
                continue
            try:
                self._step(step)
            except Exception as error:  # whatever it was, nobody waits for ever, and the next request finds an engine
                self._fail("error", f"The engine failed: {type(error).__name__}.", [])
                self.scheduler = self._schedule()
            self._progress_s = monotonic()

    def _arrive(self, job: _Job) -> None:
        if job.gone:
            return
        request, sampling = job.request, job.request.sampling
        limit = self.context - len(request.prompt)
        if sampling.max_tokens is not None:
            limit = min(limit, sampling.max_tokens)
        keys = BlockKeys(self.runtime.block_size, request.cache_salt, request.adapter)
        keys.extend(request.prompt)
        self._ids += MAX_WIDTH
        sequence = Sequence(
            self._ids, len(request.prompt), limit, arrived_s=request.arrived_s, keys=keys.keys, width=request.n,
            priority=request.priority, user=request.user, session=request.session, adapter=request.adapter,
        )  # fmt: skip
        if not self.scheduler.fits(sequence):
            sequence.limit = self.runtime.blocks * self.runtime.block_size // request.n - len(request.prompt)
            if sampling.max_tokens is not None or not self.scheduler.fits(sequence) or sequence.limit < 1:
                size = self.runtime.blocks * self.runtime.block_size
                job_error = (
                    f"{request.n} answers of {len(request.prompt)} + {limit} tokens do not fit the KV memory of {size}."
                )
                self._tell([(job, Delta(index, finish="error", error=job_error)) for index in range(request.n)])
                return
        choice = _Choice(job, 0, sequence, list(request.prompt), keys, self)
        job.choices.append(choice)
        self._choices[sequence.id] = choice
        self._counts.prompt_tokens += len(request.prompt)
        self.scheduler.arrive(sequence, monotonic())

    def _cancel(self, job: _Job) -> None:
        job.gone = True
        for choice in job.choices:
            if self._choices.pop(choice.sequence.id, None) is not None:
                self.scheduler.cancel(choice.sequence, monotonic())

    def _drop(self, sequence: Sequence, finish: str, why: str) -> None:
        """Nothing more comes of a sequence that the scheduler has let go of."""
        choice = self._choices.pop(sequence.id)
        job = choice.job
        width = job.request.n if len(job.choices) == 1 else 1
        first = choice.answer.index
        self._tell([(job, Delta(first + n, finish=finish, error=why)) for n in range(width)])  # type: ignore[arg-type]

    def _fail(self, finish: str, why: str, jobs: list[_Job]) -> None:
        for choice in list(self._choices.values()):
            self._drop(choice.sequence, finish, why)
        self._tell([(job, Delta(n, finish=finish, error=why)) for job in jobs for n in range(job.request.n)])  # type: ignore[arg-type]

    def _step(self, step: Step) -> None:
        scheduler, runtime = self.scheduler, self.runtime
        begun = monotonic()
        for chunk in step.chunks:
            job = self._choices[chunk.sequence.id].job
            if job.queued_s is None:
                job.queued_s = begun - job.request.arrived_s
        for host, device in step.loads:
            runtime.kv[device] = self._host[host]
        for device, host in step.saves:
            self._host[host] = runtime.kv[device]
        if step.copies:
            runtime.copy_blocks(step.copies)
        tokens, rows, outputs, heads = ragged(step, scheduler.state, lambda sequence: self._choices[sequence.id].tokens)
        logits = runtime.step(tokens, rows, outputs)
        self._counts.steps += 1
        started = scheduler.complete(step, monotonic())
        for sequence in started:
            if sequence.id not in self._choices:
                self._branch(sequence)
        places = {sequence.id: at for at, sequence in enumerate(heads)}
        for sequence in started:  # a fork has the logits of the sequence it was forked from
            places.setdefault(sequence.id, places.get(sequence.group, 0))
        fresh = {sequence.id for sequence in started}
        self._emit([s for s in heads if s.id not in fresh] + started, logits, places)

    def _branch(self, sequence: Sequence) -> None:
        """Another answer to a prompt that is done."""
        parent = self._choices[sequence.group]
        job = parent.job
        keys = BlockKeys(self.runtime.block_size)
        keys.keys, keys._last = sequence.keys, parent.keys._last  # type: ignore[assignment]
        choice = _Choice(job, sequence.id - sequence.group, sequence, list(parent.tokens), keys, self)
        job.choices.append(choice)
        self._choices[sequence.id] = choice

    def _emit(self, sequences: list[Sequence], logits: NDArray[np.float32], places: dict[int, int]) -> None:
        """Chooses a token for every sequence that has logits, and tells whoever waits."""
        now = monotonic()
        told: list[tuple[_Job, Delta]] = []
        finite = np.isfinite(logits.sum(axis=1))  # a NaN anywhere in a row makes its sum one
        for sequence in sequences:
            choice = self._choices.get(sequence.id)
            if choice is None or sequence.state != DECODE:
                continue
            row = places[sequence.id]
            if not finite[row]:
                sequence.keys = ()
                self.scheduler.finish(sequence, now)
                self._drop(
                    sequence, "error", "The model's output was not a number: the prompt or its weights break it."
                )
                continue
            delta = self._choose(choice, logits[row])
            if not choice.told:
                choice.told = True
                delta.cached, delta.queued_s = sequence.cached, choice.job.queued_s
            told.append((choice.job, delta))
            if delta.finish is not None:
                self.scheduler.finish(sequence, now)
                del self._choices[sequence.id]
        self._counts.generation_tokens += len(told)
        self._tell(told)

    def _choose(self, choice: _Choice, row: NDArray[np.float32]) -> Delta:
        sampler, answer, constraint = choice.sampler, choice.answer, choice.constraint
        sampling = sampler.sampling
        logprob: TokenLogprob | None = None
        if sampler.plain and constraint is None and not sampling.min_tokens:
            token = int(row.argmax())
        else:
            row = row.copy()
            sampler.adjust(row)
            if constraint is not None:
                row[~constraint.mask()] = -np.inf
            if answer.count < sampling.min_tokens:
                row[[*self.tokens.eos, *sampling.stop_token_ids]] = -np.inf
            token = sampler.choose(row)
            if sampling.logprobs is not None:
                logprob = self._logprob(log_softmax(row), token, sampling.logprobs)
            if constraint is not None:
                constraint.advance(token)
        sampler.said(token)
        choice.tokens.append(token)
        choice.keys.extend(choice.tokens)
        delta = answer.push(token, logprob)
        if delta.finish is None and constraint is not None and constraint.done:
            delta.finish = answer.finish = "stop"
        return delta

    def _logprob(self, logprobs: NDArray[np.float32], token: int, count: int) -> TokenLogprob:
        def told(token: int) -> tuple[str, bytes]:
            raw = self.tokens.piece(token) or self.tokens.decode([token]).encode()
            return raw.decode("utf-8", "replace"), raw

        top = tuple((other, *told(other), value) for other, value in likeliest(logprobs, count))
        return TokenLogprob(token, *told(token), float(logprobs[token]), top)

    def _tell(self, told: list[tuple[_Job, Delta]]) -> None:
        """Hands deltas over to the event loops of those who wait: one call for each loop and step."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Job, Delta]]] = {}
        for job, delta in told:
            by_loop.setdefault(job.loop, []).append((job, delta))
        for loop, batch in by_loop.items():
            try:
                loop.call_soon_threadsafe(_hand_over, batch)
            except RuntimeError:  # the loop is closed: nobody waits any more
                for job, _ in batch:
                    self._send("cancel", job)


def host_memory(runtime: Runtime, blocks: int) -> Any:
    """Room for as many KV blocks in host memory."""
    shape = (blocks, *runtime.kv.shape[1:])
    if isinstance(runtime.kv, np.ndarray):
        return np.empty(shape, runtime.kv.dtype)
    return runtime.kv.new_empty(shape, device="cpu")


def _hand_over(batch: list[tuple[_Job, Delta]]) -> None:
    for job, delta in batch:
        job.put(delta)
