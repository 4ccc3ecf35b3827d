"""CIDRE: concurrency-informed scaling and eviction.

The paper's text was not at hand: the conditions of CSS and the formula of CIP are a reconstruction from its abstract.
"""

from __future__ import annotations

from nubes.functions.events import DELAYED
from nubes.functions.policies.faascache import FaasCache
from nubes.functions.seams import FunctionView, InstanceView
from nubes.kernel.policy import Paper, policy

PAPER = Paper("cidre", "CIDRE", "Concurrency-Informed Orchestration for Serverless Functions", "ASPLOS 2025")


@policy("cidre-bss", paper=PAPER)
class BasicSpeculation(FaasCache):
    """Speculative scaling (BSS): a waiting call takes a new instance or a busy one that falls idle, whichever is first.

    That is how the controller serves every queue; what is added to FaasCache is that a start already under way covers
    one waiting call, so that a call which a busy instance served in the meantime does not cause another start.
    """


@policy("cidre-css", paper=PAPER)
class ConditionalSpeculation(BasicSpeculation):
    """Conditional speculation (CSS): only start beside busy instances when that was faster than waiting for one.

    Per function: Te execution, Tp provisioning, Td the latest delayed-warm wait, Ti how long a new instance stood idle
    before its first use. `Ti > Te` after a first use: stop speculating. `Td > Tp` after a delayed start: start again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.speculate: dict[str, bool] = {}

    def start(self, f: FunctionView, now: float) -> int:
        if self.speculate.get(f.name, True) or not (f.busy or f.starting or f.idle):
            return super().start(f, now)
        return 0

    def dispatched(self, instance: InstanceView, how: int, waited_s: float, now: float) -> None:
        super().dispatched(instance, how, waited_s, now)
        f = instance.function
        if instance.uses == 1 and now - instance.ready_s > f.exec_s:
            self.speculate[f.name] = False
        elif how == DELAYED and waited_s > f.cold_start_s > 0:
            self.speculate[f.name] = True


@policy("cidre", paper=PAPER)
class Cidre(ConditionalSpeculation):
    """CSS with concurrency-informed eviction (CIP): `clock + freq * cost / (size * n)`, n the cached instances of f.

    Dividing by n lowers each sibling of a wide function in turn and raises it again as siblings leave.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first_s: dict[str, float] = {}

    def arrived(self, f: FunctionView, now: float) -> None:
        self.first_s.setdefault(f.name, now)

    def priority(self, instance: InstanceView, now: float) -> float:
        f = instance.function
        rate = f.arrivals / max(1.0, now - self.first_s.get(f.name, now)) * 60.0
        cached = max(1, f.busy + f.idle)
        cost = f.cold_start_s or 1.0
        return self.clocks.get(instance.id, self.clock) + rate * cost / (f.spec.memory_bytes / 2**20 * cached)
