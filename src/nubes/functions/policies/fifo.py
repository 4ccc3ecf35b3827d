"""First come, first served, whatever the function."""

from nubes.functions.seams import Queueing
from nubes.kernel.policy import policy
from nubes.kernel.units import seconds


@policy("fifo")
class Fifo(Queueing):
    """Calls go in the order they arrived, as soon as there is capacity.

    Later ones that fit where the first in line does not may pass it, until its call is older than `patience`.
    """

    def __init__(self, patience: str | float = "10s") -> None:
        self.patience_s = seconds(patience, "patience")
