"""What an agent does on its machine: carries out orders of the control plane, and tells what becomes of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from nubes.drivers.local import payload, stayed, wire
from nubes.drivers.local.objects import is_url
from nubes.drivers.remote import messages
from nubes.drivers.remote.carrying import Carrier, InOrder
from nubes.functions import events as e
from nubes.functions.spec import Code, FunctionSpec
from nubes.kernel.errors import NubesError, UsageError

if TYPE_CHECKING:
    from nubes.drivers.local.plane import Hands


class Site(Protocol):
    """The machine that work is done on. `segments` is where large arguments are put."""

    segments: payload.Segments

    @property
    def hands(self) -> Hands: ...

    def has(self, spec: FunctionSpec) -> bool:
        """Whether a function's files are there."""

    def unpack(self, spec: FunctionSpec, files: dict[str, bytes]) -> Code:
        """Puts them there, and says where its code is then. Raises `NubesError`, `OSError`."""

    def lacks(self, around: messages.Surroundings) -> str:
        """What else a function needs and is not there, in words."""

    def close(self) -> None:
        """Ends everything at once."""


class Work:
    """The instances of one life of an agent. `send` takes news; `leave` is called when nothing is left to do here."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, carrier: Carrier, send: Callable[[Any], None],
        leave: Callable[[], None], site: Callable[[Work], Site],
    ) -> None:  # fmt: skip
        self._carrier = carrier
        self._send = send
        self._leave = leave
        self.specs: dict[str, FunctionSpec] = {}
        self.around: dict[str, messages.Surroundings] = {}
        self.prime = False
        self._held: dict[str, list[messages.Do]] = {}  # by the function whose files they wait for
        self._arguments: dict[int, str] = {}  # segments with those of calls
        self._stay: set[int] = set()  # calls whose large outputs stay here
        self._running: set[int] = set()  # instances, until they are reported lost
        self._going = False
        self._in_order = InOrder(loop)
        self.site = site(self)
        self._hands = self.site.hands

    def close(self) -> None:
        """Ends everything at once."""
        self.site.close()

    # -- orders --------------------------------------------------------------------------------------------------

    def ordered(self, order: Any) -> None:
        if isinstance(order, messages.Run):
            self._run(order)
        elif isinstance(order, messages.Files):
            self._unpack(order)
        elif isinstance(order, messages.Fetch):
            self._send(messages.Fetched(order.call, self._carrier.pack(order.data, "")))
        elif isinstance(order, messages.Forget):
            stayed.drop(order.data)
        elif isinstance(order, messages.Bye):
            self._going = True
            self._go()
        elif isinstance(order.command, e.StopInstance):
            self._unhold(order.command)
            self._hands.stop(order.command)
        elif isinstance(order.command, e.Interrupt):
            interrupt = order.command  # after its calls
            self._in_order.do(interrupt.instance, None, lambda _: self._hands.interrupt(interrupt))
        elif isinstance(order.command, e.PruneNode):
            self._unhold(order.command)
            self._hands.prune(order.command)
        elif order.around is not None:
            self._prepare(order, order.around)

    def _run(self, order: messages.Run) -> None:
        """Gives calls to an instance, with their large arguments in this machine's memory."""
        carrier, segments = self._carrier, self.site.segments
        self._stay.update(order.stay)
        begin = None
        if any(map(carrier.waits, order.inputs)):
            begin = self._in_order.work(lambda: [carrier.unpack(data, segments) for data in order.inputs])
        self._in_order.do(order.command.instance, begin, lambda inputs: self._ran(order, inputs))

    def _ran(self, order: messages.Run, inputs: list[bytes] | Exception | None) -> None:
        command = order.command
        if isinstance(inputs, Exception):
            reason = f"its arguments could not be had: {inputs}"
            self._hands.stop(e.StopInstance(command.instance, reason, kill=True))
            return
        for call, data in zip(command.calls, inputs or (), strict=False):
            if payload.segment_of(data):
                self._arguments[call] = payload.segment_of(data)
        here = [stayed.inside(data) for data in (order.inputs if inputs is None else inputs)]
        self._hands.dispatch(command, order.keep, here)

    def _prepare(self, order: messages.Do, around: messages.Surroundings) -> None:
        """Starts what is to be started, once the function's files are here."""
        name = around.spec.name
        held = self._held.get(name)
        if held is not None:
            held.append(order)
            return
        known = self.specs.get(name)
        if known is not None and known.code.digest == around.spec.code.digest:
            around.spec = msgspec.structs.replace(around.spec, code=known.code)
        elif not self.site.has(around.spec):
            self._held[name] = [order]
            self._send(messages.Wants(name))
            return
        self._start(order, around)

    def _unpack(self, files: messages.Files) -> None:
        for order in self._held.pop(files.function, []):
            around = order.around
            assert around is not None
            try:
                if files.error:
                    raise UsageError(files.error)
                found = self.site.unpack(around.spec, files.files)
                around.spec = msgspec.structs.replace(around.spec, code=found)
            except (NubesError, OSError) as error:
                self._failed(order.command, f"its files could not be had: {error}")
                continue
            self._start(order, around)

    def _start(self, order: messages.Do, around: messages.Surroundings) -> None:
        command = order.command
        self.specs[around.spec.name] = around.spec
        self.around[around.spec.name] = around
        lacking = self.site.lacks(around)
        if lacking:
            self._failed(command, lacking)
        elif isinstance(command, e.StartInstance):
            self._running.add(command.instance)
            self._hands.start(command)
        elif isinstance(command, e.GrowNode):
            self.prime = order.prime
            self._hands.grow(command)

    def _failed(self, command: Any, reason: str) -> None:
        if isinstance(command, e.StartInstance):
            self.report(e.InstanceLost(command.instance, reason))
        elif isinstance(command, e.GrowNode):
            self.report(e.NodeLost(command.node, reason))

    def _unhold(self, command: e.StopInstance | e.PruneNode) -> None:
        """What is stopped, or pruned, need not be started any more."""
        for orders in self._held.values():
            for order in orders:
                if _what(order.command) == _what(command):
                    orders.remove(order)
                    self._failed(order.command, "it was stopped before it was started")
                    return

    # -- news ----------------------------------------------------------------------------------------------------

    def report(self, event: Any) -> None:
        self._send(messages.Happened(event))
        if isinstance(event, e.InstanceLost):
            self._running.discard(event.instance)
            self._go()

    def _go(self) -> None:
        """Leaves, if it may, once those that were stopped have ended in order."""
        if self._going and not self._running:
            self._leave()

    def frame(self, instance: int, frame: list[Any]) -> None:
        keep, size = False, 0
        place = wire.RESULTS.get(frame[0])
        if frame[0] == wire.DONE and frame[1] in self._stay:
            self._stay.discard(frame[1])
            size = stayed.size_of(frame[4]) if frame[2] else 0
        if place is not None and not size:
            segment = payload.segment_of(frame[place])
            keep = payload.is_object(segment) and not is_url(segment)
            frame[place] = self._carrier.pack(frame[place], "")
            if keep:
                payload.discard(segment)
        if frame[0] == wire.DONE and frame[1] in self._arguments:
            payload.discard(self._arguments.pop(frame[1]))
        self._send(messages.Said(instance, frame, keep, size))


def _what(command: Any) -> tuple[str, int]:
    """What a command starts or ends."""
    if isinstance(command, e.GrowNode | e.PruneNode):
        return "parent", command.node
    return "instance", command.instance
