"""What a workload tells of its requests: the contents of their blocks, and who comes after whom."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nubes.workloads.llm import LLMWorkload


def keys_of(workload: LLMWorkload, at: int, block_size: int) -> list[object]:
    """What the full blocks of a request hold, where the workload tells: by its own ids, or by session.

    An id of the workload stands for `block_tokens` tokens and all before them, so for several of our blocks.
    """
    if workload.blocks is not None:
        per = workload.block_tokens // block_size
        keys: list[object] = [id * per + nth for id in workload.blocks[at] for nth in range(per)]
        return keys if workload.whole_blocks else keys[: int(workload.prompt[at]) // block_size]
    if workload.session is not None:
        session = int(workload.session[at])
        return [(session, nth) for nth in range(int(workload.prompt[at] + workload.output[at]) // block_size)]
    return []


def followers(workload: LLMWorkload) -> dict[int, int]:
    """Request -> the one after it in its session."""
    assert workload.session is not None
    last: dict[int, int] = {}
    after = {}
    for at, session in enumerate(workload.session.tolist()):
        if session in last:
            after[last[session]] = at
        last[session] = at
    return after
