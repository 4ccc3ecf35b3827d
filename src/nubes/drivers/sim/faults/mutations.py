"""Small faults put into the real code while it runs: whoever simulates faults has to notice each of them.

A mutation replaces one passage of one function by another. The function itself stays the same object, so that everybody
who has it runs the mutant.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any, NamedTuple, cast

from nubes.drivers.local.journal import Journal
from nubes.drivers.local.plane import Plane
from nubes.drivers.local.sessions import Session, withdraw
from nubes.drivers.remote.agents import Agents
from nubes.drivers.remote.carrying import InOrder
from nubes.drivers.remote.life import Life
from nubes.drivers.remote.line import Line
from nubes.drivers.remote.work import Work
from nubes.functions import answers, calls, changes, instances, lifecycle, machines, serving
from nubes.functions.tree import Tree
from nubes.kernel import frames
from nubes.kernel.clock import WallClock
from nubes.kernel.errors import UsageError
from nubes.kernel.link import Link
from nubes.kernel.log import Log


class Mutation(NamedTuple):
    """`name` says what it breaks; in `where`, `old` becomes `new`."""

    name: str
    where: Callable[..., Any]
    old: str
    new: str


M = Mutation
MUTATIONS = [
    # the log
    M("a flush is skipped", Log.sync, "self._disk.sync(self._fd)", "pass"),
    M("a failed flush is forgotten", Log._restore, "if self._lost:", "if False:"),
    M("a snapshot is not flushed", Log.save_snapshot, "self._disk.sync(fd)", "pass"),
    M("a snapshot's name is not flushed", Log.save_snapshot, "self._disk.sync_folder(self.folder)", "pass"),
    M("a segment's name is not flushed", Log._new_segment, "self._disk.sync_folder(self.folder)", "pass"),
    M("a full segment is not flushed", Log._roll, "self.sync()", "pass"),
    M("names are not flushed at the start", Log.__init__, "disk.sync_folder(folder)", "pass"),
    M("what is read at the start is not written again", Log._recover, "self._disk.rewrite(run[-1], raw)", "pass"),
    M("a torn record is believed", frames.frames, "if _crc(body) != crc:", "if False:"),
    M("a damaged snapshot is believed", frames.state_in, "raw == snapshot(state)", "True"),
    M("a short write counts as whole", Log.write, "written += self._disk.write(self._fd, memoryview(data)[written:])",
      "self._disk.write(self._fd, memoryview(data)[written:]); written = len(data)"),
    M("a full disk drops what did not fit", Log.write, "[data[written:]] if written < len(data) else []", "[]"),
    M("a record goes on in the next segment", Log.write, "and not self._torn", ""),
    M("a torn tail stays", Log._whole, "self._disk.truncate(fd, good)", "pass"),
    M("the lock is dropped", Log.__init__, "disk.lock(folder)", "0"),
    M("the first record behind a snapshot is skipped", Log.records, "if number >= start:", "if number > start:"),
    M("a snapshot's number is one too low", Log.save_snapshot, "{self.count:016d}", "{self.count - 1:016d}"),
    M("segments go that one snapshot alone covers", Log.save_snapshot, "snapshots[-2]", "snapshots[-1]"),
    # the journal
    M("what is to be safe is told at once", Journal.when_safe, "self._unsynced.append((then, otherwise))", "then()"),
    M("a flush that failed is believed", Journal._synced, "None if done.cancelled() else done.exception()", "None"),
    M("a flush covers what came during it", Journal._synced, "for then, _ in waiting:",
      "for then, _ in waiting + self._unsynced:"),
    M("a full disk is not tried again", Journal._not_safe, "self._loop.call_later(_RETRY_SYNC_S, self._sync)", "pass"),
    M("only the first flush is begun", Journal._synced, "self._syncing = False", "pass"),
    M("who is refused is not told", Journal._not_safe, "otherwise(self.full)", "pass"),
    M("a snapshot does not know its time", Journal._snapshot, "self._now)", "0.0)"),
    M("the tail is not folded", Journal.recover, "self.log.records(start)", "self.log.records(self.log.count)"),
    M("the tail is folded from too early", Journal._newest, "self.log.snapshot_at, float", "self.log.first, float"),
    # the plane
    M("the log does not say that it went on", Plane.begin, "self.feed(e.Restarted())", "pass"),
    M("the clock goes back", WallClock.__init__, "max((wall or time.time)(), floor)", "(wall or time.time)()"),
    M("retries are not timed", Plane._set_timer, "command.at < 1e300",
      "command.at < 1e300 and command.key[0] != 'retry'"),
    M("instances are not timed", Plane._set_timer, "command.at < 1e300",
      "command.at < 1e300 and command.key[0] != 'instance'"),
    M("an answer is told before it is safe", Plane._resolve,
      "self.journal.when_safe(lambda: _tell(told, command, output))", "_tell(told, command, output)"),
    M("who watches is forgotten", Plane._resolve, "*watchers]", "]"),
    M("a fetched answer is told before it is safe", Plane.watch, "self.journal.when_safe(", "(lambda then: then())("),
    M("a shared answer is told before it is safe", Plane.submit, "self._shared.add(event.call)", "pass"),
    M("an event is not in the log", Plane.feed, "self.journal.append(now, event)",
      "isinstance(event, e.InstanceReady) or self.journal.append(now, event)"),
    M("a call is accepted before it is safe", Session._call, "self.plane.journal.when_safe(",
      "(lambda then, _: then())("),
    M("a call of a known key is accepted as its own", Session._call,
      "self.plane.controller.keys.get((function + variant, key), call) if key else call", "call"),
    M("a refused call runs", withdraw, "plane.feed(e.Cancelled(call, terminate=True, refused=True))", "pass"),
    M("who shares a refused call is accepted", Session._kept, "actual in controller.results", "True"),
    M("who hung up is not missed", Session._gone, "self.plane.feed(e.ClientGone(self.owner, tuple(sorted(self.apps))))",
      "pass"),
    # links and agents
    M("kept messages are not sent again", Link._hello,
      "[self._data(number, message) for number, message in self._kept]", "[]"),
    M("one message too many is forgotten", Link._forget, "self._kept[0][0] <= received",
      "self._kept[0][0] <= received + 1"),
    M("another side is not noticed", Link._hello, "lost = self.peer not in (0, incarnation)", "lost = False"),
    M("a broken connection counts as one", Line._gone, "self._connection = None", "pass"),
    M("an agent's lease never ends", Life._beat, "> messages.LEASE_S", "> 1e9"),
    M("a lease counts what the agent hears", Life._beat, "self.line.known_s", "self.line.heard_s"),
    M("instances outlive the life of their agent", Life.end, "self.work.close()", "pass"),
    M("who may go does not", Agents._bye, "self._order(member, messages.Bye())", "pass"),
    M("a silent machine is never given up", Agents._look, "> messages.LOST_S", "> 1e9"),
    M("a machine is given up before its agent knows", Agents._look, "> messages.LOST_S", "> messages.LEASE_S - 2.0"),
    M("a machine that was given up may come back", Agents.join, "if about.incarnation in self._given_up:", "if False:"),
    M("what an agent had before it began anew stays", Agents.join,
      'self.lost(other.machine, "its agent was started anew")', "pass"),
    M("an instance whose answer is lost goes on", Agents._lose,
      "self._order(member, messages.Do(e.StopInstance(instance, reason, kill=True)))", "pass"),
    M("news overtake each other", InOrder.do, "line.append((begin, then))",
      "line.append((begin, then)) if begin else then(None)"),
    M("an instance's end overtakes its answer", Agents._news,
      "self._in_order.do(event.instance, None, lambda _: self._ended(member, event))", "self._ended(member, event)"),
    M("who may go ends what is ending", Work._go, "self._going and not self._running", "self._going"),
    M("who wants a machine's files gets none", Agents._news, "self._order(member, self._files(news.function))", "pass"),
    M("what was pruned grows once its files are there", Work.ordered,
      "self._unhold(order.command)\n        self._hands.prune", "self._hands.prune"),
    M("what waits for files is forgotten", Work._prepare, "held.append(order)", "pass"),
    # the controller
    M("CPU is not counted back", serving.freed, "instance.machine.cpu_used -= f.cpu", "pass"),
    M("memory is not counted back", instances.drop, "memory_used -=", "memory_used +="),
    M("a call is resolved twice", answers.resolve, "c.out.append(Resolve(call.id, status, reason, output))",
      "c.out += [Resolve(call.id, status, reason, output)] * 2"),
    M("an alias is lost", answers.known, "c.aliases[event.call] = call.id", "pass"),
    M("an answer is not kept", answers.resolve,
      "c.results[id] = Result(now, call.asked, status, reason, output)", "pass"),
    M("a key is not known again", answers.known, "return result is not None or (call is not None and call.keep)",
      "return False"),
    M("who shares an answer gets none", Plane._done,
      "self.outputs.update((other, self.another(output)) for other in call.also)", "pass"),
    M("a durable call runs beside a plain one of its key", calls.submitted, "if first is not None:", "if False:"),
    M("a durable call is forgotten with a plain one of its key", calls._withdraw,
      "arrived(c, call.function, call, now)", "pass"),
    M("an answer that is not in the log is kept", calls.finished, "if call.also and not event.keep", "if False"),
    M("the key of a lost call stays", answers.disconnect, "if id not in c.calls or c.calls[id].keep", ""),
    M("a refused call keeps its key", calls.cancelled, "if event.refused:", "if False:"),
    M("an instance is given one call too many", serving.dispatch, "if instance.load < f.room:",
      "if instance.load <= f.room:"),
    M("a start takes memory that is not there", instances._make_room, "while need > 0:", "while False:"),
    M("a lost machine takes its calls along", machines.lost, "requeue(c, i,", "(lambda *_, **__: None)(c, i,"),
    M("a lost instance takes its calls along", lifecycle._gone, "requeue(c, instance, reason, now)", "pass"),
    M("a retry is forgotten", calls.retry, 'c.out.append(e.SetTimer(now + delay, ("retry", call.id)))', "pass"),
    M("calls do not start over", changes.restarted, "enqueue(c, call.function, call)", "pass"),
    M("a call outlives its timeout", lifecycle.instance_timer, "_timed_out(c, instance, now)", "pass"),
    M("a parent that is gone is forked", Tree._cut, "del nodes[id]", "pass"),
]  # fmt: skip


def find(name: str) -> Mutation:
    """The mutation of that name. Raises `UsageError`."""
    for mutation in MUTATIONS:
        if mutation.name == name:
            return mutation
    raise UsageError(f"No mutation is named {name!r}.", "`make mutations` lists them all.")


@contextmanager
def applied(mutation: Mutation) -> Iterator[None]:
    """The code is broken in this way within. Raises `UsageError` if the passage is not there, or not once."""
    function = cast(FunctionType, mutation.where)
    source = textwrap.dedent(inspect.getsource(function))
    if source.count(mutation.old) != 1:
        raise UsageError(f"{function.__qualname__} has {mutation.old!r} {source.count(mutation.old)} times, not once.")
    made: dict[str, Any] = {}
    mutant = "from __future__ import annotations\n" + source.replace(mutation.old, mutation.new)
    exec(compile(mutant, f"<{mutation.name}>", "exec"), function.__globals__, made)
    kept, function.__code__ = function.__code__, made[function.__name__].__code__
    try:
        yield
    finally:
        function.__code__ = kept
