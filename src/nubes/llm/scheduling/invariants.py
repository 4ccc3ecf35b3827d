"""What must be true of a scheduler between any two steps."""

from __future__ import annotations

from collections import Counter

from nubes.llm.scheduling.sequence import DECODE, MOVING, PREFILL, SWAPPED, WAITING
from nubes.llm.scheduling.state import State, by_rank


def check(state: State) -> None:
    """Raises `AssertionError` if a block is lost or owned twice, a count is wrong, or a sequence is misplaced."""
    pool, size = state.pool, state.block_size
    held = [*state.decoding.values(), *state.prefilling.values(), *state.moving.values()]
    references = Counter(block for sequence in held for block in sequence.blocks)
    references.update(block for blocks in state.reserved.values() for block in blocks)
    adapters = state.adapters
    references.update(block for of in (adapters.held, adapters.filling) for blocks in of.values() for block in blocks)
    users = Counter(s.adapter for s in held if adapters.size(s.adapter))
    assert adapters.users == users, "an adapter's users are miscounted"
    assert adapters.held.keys() == users.keys(), "an adapter is held for nobody, or not there for somebody"
    assert adapters.blocks == sum(map(len, adapters.held.values()))
    assert adapters.weight == sum(adapters.size(name) * count for name, count in users.items())
    for name, blocks in adapters.held.items():
        assert blocks == adapters.found(name), "an adapter is not where it should be found"
    free = set(pool.free)
    assert len(free) == len(pool.free), "a block is free twice"
    assert not free & references.keys(), "a free block is in use"
    assert not free & pool.idle.keys(), "a free block is kept for its content"
    assert not pool.idle.keys() & references.keys(), "a block in use counts as idle"
    assert len(free) + len(pool.idle) + len(references) == pool.size, "a block is lost"
    assert pool.shared == {block: count for block, count in references.items() if count > 1}, "references are wrong"
    assert {block: key for key, block in pool.index.items()} == pool.keys, "index and keys differ"
    assert pool.idle.keys() <= pool.keys.keys(), "an idle block holds nothing anybody could find"
    for sequence in held:
        assert len(set(sequence.blocks)) == len(sequence.blocks), "a sequence has one block twice"
        assert sequence.context <= len(sequence.blocks) * size, "a sequence has outgrown its blocks"
    for sequence in state.decoding.values():
        assert sequence.state == DECODE
        assert sequence.context == sequence.known - 1
        assert sequence.id in state.bucket(sequence), "a decoding sequence is in the wrong bucket"
    assert sum(map(len, state.buckets)) == len(state.decoding)
    assert state.decode_context == sum(s.context + 1 for s in state.decoding.values())
    for sequence in state.prefilling.values():
        assert sequence.state == PREFILL
        assert sequence.todo == sum(end - start for start, end in sequence.segments) > 0
    for sequence in state.waiting:
        assert sequence.state == WAITING
        assert not sequence.blocks
    assert state.waiting == sorted(state.waiting, key=by_rank), "the queue is out of order"
    for sequence in state.moving.values():
        assert sequence.state == MOVING
        assert sequence.context == sequence.known - 1
        assert sequence.lane is None, "a sequence on its way still grows"
    assert not state.reserved.keys() & {sequence.id for sequence in held}, "a sequence is here and on its way here"
    host = state.host
    hosts = [block for sequence in state.swapped.values() for block in sequence.host]
    owned = [*hosts, *host.free, *host.idle]
    assert sorted(owned) == list(range(host.size)), "a host block is lost, or owned twice"
    assert {block: key for key, block in host.index.items()} == host.keys, "index and keys of host memory differ"
    assert host.keys.keys() == host.idle.keys(), "host memory holds what nobody could find"
    for block, copy in state.copied.items():
        assert pool.idle[block].key == host.idle[copy].key, "a copy holds something else"
    both = {key for key in host.index if key in pool.index}
    assert {pool.keys[block] for block in state.copied} == both, "a block in use has a copy"
    assert all(sequence.state == SWAPPED for sequence in state.swapped.values())
