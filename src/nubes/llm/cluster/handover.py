"""One request's way from one engine to another. Sans-I/O: answers of the engines in, commands to them out.

From: Llumnix: Dynamic Scheduling for Large Language Model Serving (OSDI 2024): KV of tokens that are there never
changes, so it is copied while the sequence runs on, then what came meanwhile, until little is left: for that it stops.
Before each stage the target sets blocks aside, or refuses. From: ServerlessLLM (OSDI 2024): only the tokens go, and the
target computes their KV, again and again until few are missing.
"""

from __future__ import annotations

from nubes.llm.cluster import events as e
from nubes.llm.cluster.seams import Way


class Handover:
    """`outcome` is "" while it goes on, then "landed", "redispatched" (the target's queue has it) or "aborted".

    If it is aborted the request is where it was, and runs on if its engine lives. `fetched`: the source has stopped it
    already, and waits for as long as it takes until the target has room.
    """

    def __init__(
        self, id: int, source: int, target: int, way: Way = "live", *, last_blocks: int = 16, stages: int = 3,
        gap: int = 20, turn: int = 0, fetched: int | None = None,
    ) -> None:  # fmt: skip
        self.id = id
        self.source = source
        self.target = target
        self.way = way
        self.last_blocks = last_blocks
        self.stages = stages
        self.gap = gap
        self.fetched = fetched is not None
        self.turn = turn
        self.stopped = self.departed = self.fetched  # told to stop, and has
        self.asked = False  # something of the target
        self.landing = False
        self.waits = False  # for room at the target
        self.stage = 0
        self.reserved = 0  # blocks set aside at the target
        self.copied = 0  # blocks that are there
        self.goal = fetched or 0
        self.outcome = ""

    def begin(self) -> list[e.Command]:
        if self.fetched:
            return self._reserve()
        if self.way == "live":
            return [e.Look(self.id, self.turn, self.source)]
        if self.way == "tokens":
            return self._warm()
        return self._stop()

    def on(self, event: e.Answer) -> list[e.Command]:
        """The next commands. Answers that come after the end, or to another handover, are ignored."""
        if self.outcome or event.turn != self.turn:
            return []
        if isinstance(event, e.Filled):
            return self._filled(event)
        if isinstance(event, e.Reserved):
            return self._reserved(event)
        if isinstance(event, e.Copied):
            return self._copied()
        if isinstance(event, e.Departed):
            return self._departed(event)
        if isinstance(event, e.Warmed):
            return [e.Look(self.id, self.turn, self.source)] if self._warmed(event) else self.abort()
        if isinstance(event, e.Landed):
            self.outcome = "landed"
            return [e.Release(self.id, self.turn, self.source)]
        return []

    def again(self) -> list[e.Command]:
        """Something ended at the target: there may be room by now."""
        if not self.waits or self.outcome:
            return []
        self.waits = False
        return self._reserve()

    def abort(self, source: bool = True, target: bool = True) -> list[e.Command]:
        """Gives up; `source` and `target`: whether each still lives. What was set aside is free again."""
        commands: list[e.Command] = []
        if target and self.asked:
            commands.append(e.Unreserve(self.id, self.turn, self.target))
        if source and self.stopped:
            commands.append(e.Stay(self.id, self.turn, self.source))
        self.outcome = "aborted"
        return commands

    # -- stages ---------------------------------------------------------------------------------------------------

    def _filled(self, event: e.Filled) -> list[e.Command]:
        if event.blocks < 0:
            return self.abort()
        if self.way == "tokens":
            close = event.known - self.copied <= self.gap
            return self._stop() if close else self._warm()
        if event.blocks - self.copied <= self.last_blocks:
            return self._stop()
        if self.stage == self.stages:
            return self.abort()
        self.stage += 1
        self.goal = event.blocks
        return self._reserve()

    def _warm(self) -> list[e.Command]:
        if self.stage == self.stages:
            return self.abort()
        self.stage += 1
        self.asked = True
        return [e.Warm(self.id, self.turn, self.source, self.target)]

    def _warmed(self, event: e.Warmed) -> bool:
        self.copied = event.tokens
        return event.tokens >= 0

    def _stop(self) -> list[e.Command]:
        self.stopped = True
        return [e.Depart(self.id, self.turn, self.source)]

    def _departed(self, event: e.Departed) -> list[e.Command]:
        if event.blocks < 0:
            self.stopped = False
            return self.abort()
        self.departed = True
        if self.way in ("recompute", "tokens"):
            self.outcome = "redispatched"
            return [e.Release(self.id, self.turn, self.source), e.Dispatch(self.id, self.target)]
        self.goal = event.blocks
        return self._reserve()

    def _reserve(self) -> list[e.Command]:
        if self.goal <= self.reserved:
            return self._copy()
        self.asked = True
        return [e.Reserve(self.id, self.turn, self.target, self.goal - self.reserved)]

    def _reserved(self, event: e.Reserved) -> list[e.Command]:
        if not event.ok:
            if not self.fetched:
                return self.abort()
            self.waits = True
            return []
        self.reserved = self.goal
        return self._copy()

    def _copy(self) -> list[e.Command]:
        if self.copied == self.goal:
            return self._copied()
        return [e.Copy(self.id, self.turn, self.source, self.target, self.copied, self.goal)]

    def _copied(self) -> list[e.Command]:
        self.copied = self.goal
        if self.departed:
            self.landing = True
            return [e.Land(self.id, self.turn, self.source, self.target)]
        return [e.Look(self.id, self.turn, self.source)]
