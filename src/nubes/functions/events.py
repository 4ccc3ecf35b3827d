"""What happens to functions, and what is to be done about it."""

from __future__ import annotations

from math import inf

from nubes.cluster.seams import Operation
from nubes.functions.spec import FunctionSpec
from nubes.kernel.message import Command, Event

# Status of a call, as users see it.
PENDING, RUNNING, SUCCEEDED, FAILED, CANCELLED, TIMED_OUT = (
    "PENDING",
    "RUNNING",
    "SUCCEEDED",
    "FAILED",
    "CANCELLED",
    "TIMED_OUT",
)

INNER_CALLS = 1 << 62  # ids of calls that nobody outside makes start here: by the clock, or by task control

# How a call got its instance.
WARM, DELAYED, COLD = 0, 1, 2  # at once; after waiting for a busy one; after waiting for a new one


class Deployed(Event, frozen=True):
    """An app's functions, replacing those of its earlier version."""

    app: str
    version: int
    functions: tuple[FunctionSpec, ...]
    ephemeral: bool = False  # goes away with the client that runs it

    @property
    def durable(self) -> bool:
        return not self.ephemeral


class Removed(Event, frozen=True):
    """An app and everything of it goes away."""

    app: str


class Submitted(Event, frozen=True):
    """A call arrived. A durable one (`spawn`) carries its input and outlives the control plane."""

    call: int
    function: str
    keep: bool = False
    method: str = ""
    variant: str = ""  # parameters of a class instance: each has instances of its own
    route: tuple[str, ...] = ()  # functions that take the result on, one after the other
    key: str = ""  # idempotency key
    input: bytes = b""  # only if `keep`
    owner: int = 0  # the client connection that waits for it
    near: tuple[tuple[int, int], ...] = ()  # (machine, bytes of the input that lie there)

    @property
    def durable(self) -> bool:
        return self.keep


class Cancelled(Event, frozen=True):
    call: int
    terminate: bool = False  # also end the instance that runs it
    refused: bool = False  # it was never accepted: nothing of it is kept, and its idempotency key is free again


class ClientGone(Event, frozen=True):
    """A client hung up: calls it waited for are cancelled, its ephemeral apps removed."""

    owner: int
    apps: tuple[str, ...] = ()

    @property
    def durable(self) -> bool:
        return False


class InstanceReady(Event, frozen=True):
    """An instance can take calls. `phases` are seconds spent in (queue, fork, environment, import, user set-up)."""

    instance: int
    phases: tuple[float, ...] = ()

    @property
    def durable(self) -> bool:
        return False


class InstanceLost(Event, frozen=True):
    """An instance's process ended, whoever ended it. `error` is what its start raised, if it did not get ready."""

    instance: int
    reason: str = ""
    error: bytes = b""

    @property
    def durable(self) -> bool:
        return False


class Finished(Event, frozen=True):
    """An instance answered a call. `output` is there only for durable calls; `backpressure` if a callee pushed back."""

    call: int
    instance: int
    ok: bool
    exec_s: float
    output: bytes = b""
    backpressure: str = ""
    keep: bool = False

    @property
    def durable(self) -> bool:
        return self.keep


class NodeReady(Event, frozen=True):
    """A parent in the process tree is parked and can be forked."""

    node: int
    seconds: float
    memory_bytes: int = 0

    @property
    def durable(self) -> bool:
        return False


class NodeLost(Event, frozen=True):
    node: int
    reason: str = ""

    @property
    def durable(self) -> bool:
        return False


class TimerFired(Event, frozen=True):
    """A timer set by `SetTimer` has come."""

    key: tuple[str, str | int]

    @property
    def durable(self) -> bool:
        return False


class PolicySet(Event, frozen=True):
    """From now on `policy` decides at `seam` (for one function, where the seam allows it)."""

    seam: str
    policy: str
    function: str = ""


class MachineReady(Event, frozen=True, tag="CapacitySet"):  # what it was called when there was only one
    """A machine joined, or has more or less to give than before. 0 is the one that the control plane runs on."""

    cpu: float
    memory_bytes: int
    machine: int = 0
    zone: str = ""  # what fails together


class MachineDraining(Event, frozen=True):
    """A machine is to go: it takes nothing new, and `Drained` tells when nothing is left on it.

    Whoever may keep its instances for a while may do so for `within_s`.
    """

    machine: int
    within_s: float = inf


class DisruptionAnswered(Event, frozen=True):
    """What an application that was asked (`AskDisruption`) can bear: these of its instances may go."""

    function: str
    offer: int
    allowed: tuple[int, ...]

    @property
    def durable(self) -> bool:
        return False


class MachineLost(Event, frozen=True):
    """A machine is gone, with everything on it."""

    machine: int
    reason: str = ""


class Restarted(Event, frozen=True):
    """The control plane came back: instances, parents and everyone who waited on a connection are gone."""


EVENTS = (
    Deployed, Removed, Submitted, Cancelled, ClientGone, InstanceReady, InstanceLost, Finished,
    NodeReady, NodeLost, TimerFired, PolicySet, Restarted,
    MachineReady, MachineDraining, MachineLost, DisruptionAnswered,
)  # fmt: skip


class StartInstance(Command, frozen=True):
    """Fork an instance of `function` on `machine` from `node` (0: a fresh interpreter)."""

    instance: int
    function: str
    variant: str
    node: int
    machine: int = 0


class StopInstance(Command, frozen=True):
    """End an instance; `kill` at once, else after its exit hooks."""

    instance: int
    reason: str
    kill: bool = False


class Interrupt(Command, frozen=True):
    """Stop running one of an instance's calls; the others go on."""

    instance: int
    call: int


class Dispatch(Command, frozen=True):
    """Give `calls` to an instance, which runs them as one `batch`, or else one after the other.

    `inputs` are there only for durable calls.
    """

    instance: int
    calls: tuple[int, ...]
    how: int
    method: str = ""
    hop: bool = False  # the input is the output of the step before
    inputs: tuple[bytes, ...] = ()
    batch: bool = False
    copy: bool = False  # another instance runs it already


class Resolve(Command, frozen=True):
    """A call has ended: tell whoever waits. `reason` is empty if the function itself answered, ok or not."""

    call: int
    status: str
    reason: str = ""
    output: bytes = b""


class SetTimer(Command, frozen=True):
    """Report `TimerFired(key)` at time `at`; a later `SetTimer` of the same key does not undo it."""

    at: float
    key: tuple[str, str | int]


class GrowNode(Command, frozen=True):
    """Fork a parent from `parent` (0: a fresh interpreter); it imports `imports`, and `function`'s module if named."""

    node: int
    parent: int
    environment: str
    imports: tuple[str, ...]
    function: str = ""
    machine: int = 0


class PruneNode(Command, frozen=True):
    node: int
    reason: str = ""


class Drained(Command, frozen=True):
    """No instance is left on a machine that is to go."""

    machine: int


class AskDisruption(Command, frozen=True):
    """Ask an application which of the operations `pending` it can bear now: by `call`, of a method of its class."""

    call: int
    function: str
    variant: str
    method: str
    offer: int
    pending: tuple[Operation, ...]
    running: tuple[Operation, ...]
