"""The auditor: compares what callers were told with what the log says and what was run. A pure function."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from nubes.chaos import audit_stores
from nubes.chaos.evidence import (
    ACCEPTED,
    CALLS,
    NOT_FOUND,
    NOT_YET,
    REFUSED,
    UNKNOWN,
    Ask,
    Broken,
    Evidence,
    Logged,
    Run,
    Told,
    expected,
)
from nubes.functions.events import CANCELLED, FAILED, SUCCEEDED

TAIL_S = 1.0  # what was not flushed for anybody may be missing from the log so long before a crash
ANSWERS = ("SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT")


@dataclass(frozen=True)
class Finding:
    """Something that was promised and not kept. `kind` is one of RULES."""

    kind: str
    what: str


RULES = {
    "lost": "a call that was accepted is not in the log, or has no answer",
    "unanswered": "an accepted call had no answer when all faults were over",
    "two-answers": "one call was answered in two ways",
    "not-the-log": "a caller was told something else than the log says",
    "wrong-answer": "an answer is not what the function returns",
    "not-run": "a call succeeded, and never ran to its end",
    "run-too-often": "a call ran more often than instances and control planes were lost under it",
    "two-for-one-key": "an idempotency key was answered by two calls",
    "refused-but-done": "a call that was refused was done all the same",
    "not-asked": "the log or the ledger knows something that nobody asked for",
    "cancelled-unasked": "a call was cancelled, and nobody had asked for it",
    "queue-lost": "an item that was put is gone, and no taker can have it",
    "queue-twice": "an item was given out twice",
    "queue-unasked": "an item was given out that nobody put",
    "dict-wrong": "a dict shows a value that was not the last one set",
    "left-over": "a process, a shared-memory folder or a cgroup was left behind",
    "ended-alone": "a process ended though nobody ended it",
}


def audit(evidence: Evidence) -> list[Finding]:
    """Everything that was promised and not kept, in the order of RULES; empty if all is well."""
    found = [
        *_Calls(evidence).findings(),
        *(Finding(kind, what) for kind, what in audit_stores.queue(evidence)),
        *(Finding(kind, what) for kind, what in audit_stores.dicts(evidence)),
        *(Finding("left-over", what) for what in evidence.left_over),
        *(Finding("ended-alone", what) for what in evidence.ended_alone),
    ]
    order = list(RULES)
    return sorted(found, key=lambda one: order.index(one.kind))


class _Calls:
    """What is said of each call, put together."""

    def __init__(self, evidence: Evidence) -> None:
        self.log = evidence.log
        self.app = evidence.app
        self.asked: dict[int, Ask] = {}  # by call
        self.told: dict[int, list[Told]] = defaultdict(list)  # final answers
        self.accepted: dict[int, int] = {}  # the call that was asked -> the one that it was accepted as
        self.refused: set[int] = set()
        self.cancels: set[int] = set()
        self.unanswered: dict[int, Told] = {}
        self.runs: dict[str, list[Run]] = defaultdict(list)
        self.of: dict[tuple[str, int], Ask] = {(ask.client, ask.op): ask for ask in evidence.asks}
        for ask in evidence.asks:
            if ask.kind in CALLS:
                self.asked[ask.call] = ask
            elif ask.kind == "cancel":
                self.cancels.add(ask.call)
        for told in sorted(evidence.tolds, key=lambda one: one.at_s):
            self._hear(told)
        for run in evidence.runs:
            self.runs[run.token].append(run)
        crashes = [fault for fault in evidence.faults if fault.kind == "kill-plane"]
        stalls = [f for f in evidence.faults if f.kind in ("full-disk", "slow-disk", "stop-plane", "stop-plane-long")]
        self.lossy = [(_began(crash.at_s, stalls) - TAIL_S, crash.until_s) for crash in crashes]
        kills = [f.at_s for f in evidence.faults if f.kind in ("kill-instance", "kill-parent", "kill-agent")]
        self.unwritten_losses = sum(any(a <= at <= b for a, b in self.lossy) for at in kills)

    def _hear(self, told: Told) -> None:
        ask = self.of.get((told.client, told.op))
        if ask is None or (ask.kind not in CALLS and ask.kind != "fetch"):
            return
        if told.status == ACCEPTED:
            self.accepted[ask.call] = told.call
        elif told.status == REFUSED and ask.kind in CALLS:
            self.refused.add(ask.call)
        elif told.status in ANSWERS:
            self.told[ask.call].append(told)
            self.unanswered.pop(ask.call, None)
        elif told.status in (NOT_FOUND, NOT_YET, UNKNOWN) and ask.kind == "fetch":
            self.unanswered[ask.call] = told

    def findings(self) -> Iterator[Finding]:
        yield from self._accepted()
        for call, tolds in self.told.items():
            yield from self._answered(call, tolds)
        yield from self._keys()
        yield from self._executions()
        yield from self._unasked()

    def _accepted(self) -> Iterator[Finding]:
        for call in sorted(set(self.accepted.values())):
            logged = self.log.get(call)
            if logged is None:
                yield Finding("lost", f"{self._name(call)} was accepted, and the log does not know it")
            elif not logged.answers:
                yield Finding("lost", f"{self._name(call)} was accepted, and the log has no answer")
            if call not in self.told:
                last = self.unanswered.get(call)
                how = f"last heard: {last.status} {last.said}" if last is not None else "nobody could ask"
                yield Finding("unanswered", f"{self._name(call)} was accepted, and not answered; {how}")
        for call in sorted(self.refused - set(self.accepted.values())):
            logged = self.log.get(call)
            if logged is not None and (logged.pending or any(status == SUCCEEDED for status, _ in logged.answers)):
                yield Finding("refused-but-done", f"{self._name(call)} was refused, and done: {logged.answers}")

    def _answered(self, call: int, tolds: list[Told]) -> Iterator[Finding]:
        said = {(told.status, told.said) for told in tolds}
        name = self._name(call)
        if len(said) > 1:
            yield Finding("two-answers", f"{name} was answered {sorted(said)}")
        logged = self.log.get(call)
        for status, text in sorted(said):
            if logged is None or not logged.answers:
                first, ask = min(told.at_s for told in tolds), self.asked.get(call)
                from_s = ask.at_s if ask is not None else first
                around = any(from_s <= end and begin <= first for begin, end in self.lossy)
                if not around or self._durable(call):
                    yield Finding("not-the-log", f"{name} was answered {status} {text}, and the log has no answer")
            elif not any(status == kept and what in (text, "") for kept, what in logged.answers):
                yield Finding("not-the-log", f"{name} was answered {status} {text}, and the log has {logged.answers}")
            if call not in self.asked:
                continue
            ask = self.asked[call]
            right, what = expected(ask.function, ask.token)
            returned = status == SUCCEEDED or (status == FAILED and text != "lost")
            if returned and (status, text) != (right, what):
                yield Finding("wrong-answer", f"{name} was answered {status} {text}, not {right} {what}")
            elif returned and not any(run.end_s for run in self.runs[ask.token]):
                yield Finding("not-run", f"{name} was answered {status} {text}, and never ran to its end")
            if status == CANCELLED and call not in self.cancels and self._durable(call):
                yield Finding("cancelled-unasked", f"{name} was cancelled, and nobody had asked for it")
        if logged is not None and len(set(logged.answers)) > 1:
            yield Finding("two-answers", f"{name} has {logged.answers} in the log")

    def _keys(self) -> Iterator[Finding]:
        calls: dict[tuple[str, str], set[int]] = defaultdict(set)
        for asked, call in self.accepted.items():
            ask = self.asked.get(asked)
            if ask is not None and ask.key:
                calls[ask.function, ask.key].add(call)
        for (function, key), ids in sorted(calls.items()):
            if len(ids) > 1:
                yield Finding("two-for-one-key", f"{function} with key {key} was accepted as calls {sorted(ids)}")

    def _executions(self) -> Iterator[Finding]:
        work: dict[tuple[str, str], list[Ask]] = defaultdict(list)
        for ask in self.asked.values():
            work[ask.token, ask.key].append(ask)
        for (token, key), asks in work.items():
            runs = len(self.runs[token])
            known = [logged for ask in asks if (logged := self.log.get(ask.call)) is not None]
            allowed = 1 + sum(map(self._again, known)) + sum(ask.call in self.refused for ask in asks)
            if runs > allowed:
                names = ", ".join(self._name(ask.call) for ask in asks)
                yield Finding("run-too-often", f"{names} ran {runs} times{' for one key' * bool(key)}, not {allowed}")

    def _again(self, logged: Logged) -> int:
        """How often a call may have been run anew: only durable ones are."""
        if not logged.keep:
            return 0
        return logged.losses + logged.restarts + (self.unwritten_losses if logged.restarts else 0)

    def _unasked(self) -> Iterator[Finding]:
        for call, logged in self.log.items():
            if logged.function.startswith(f"{self.app}/") and call not in self.asked:
                yield Finding("not-asked", f"the log has a call {call} of {logged.function} that nobody asked for")
        tokens = {ask.token for ask in self.asked.values()}
        for token in self.runs:
            if token not in tokens and self.runs[token]:
                yield Finding("not-asked", f"{token} ran, and nobody had asked for it")

    def _durable(self, call: int) -> bool:
        ask = self.asked.get(call)
        return call in self.accepted.values() or (ask is not None and ask.kind == "spawn")

    def _name(self, call: int) -> str:
        ask = self.asked.get(call)
        return (
            f"call {call} ({ask.client}, {ask.kind} {ask.function} {ask.token})" if ask is not None else f"call {call}"
        )


def _began(at_s: float, stalls: list[Broken]) -> float:
    """When what a crash took along was first kept from being written."""
    return min((f.at_s for f in stalls if f.at_s <= at_s <= f.until_s + TAIL_S), default=at_s)


def counts(evidence: Evidence) -> dict[str, Counter[str]]:
    """How often each kind of operation ended in which way; `ASKED` counts them all."""
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    of = {}
    for ask in evidence.asks:
        kinds[ask.kind]["ASKED"] += 1
        of[ask.client, ask.op] = ask.kind
    for told in evidence.tolds:
        kind = of.get((told.client, told.op))
        if kind is not None:
            kinds[kind][told.status] += 1
    return dict(kinds)
