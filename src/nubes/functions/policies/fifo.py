"""First come, first served, whatever the function."""

from nubes.functions.seams import Queueing
from nubes.kernel.policy import policy


@policy("fifo")
class Fifo(Queueing):
    """Calls go in the order they arrived, as soon as there is capacity."""
