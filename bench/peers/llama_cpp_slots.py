"""llama.cpp with continuous batching over slots, as its server does. Arguments: GGUF file, "gguf", threads.

llama-cpp-python brings the library but not that server, and its own decodes one sequence at a time: so the loop is
here. A step holds one token of every slot that decodes, and as much of the waiting prompts as a batch still takes.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field

from answers import Requests, claim_stdout, serve

SLOTS = int(os.environ.get("LLAMA_CPP_SLOTS", "4"))
SLOT_TOKENS, BATCH_TOKENS = 1024, 2048


@dataclass
class Slot:
    """A sequence in the KV cache: `todo` are the tokens it has not read yet, `read` how many it has."""

    number: int
    todo: list[int]
    wanted: int
    times: list[float]
    read: int = 0
    row: int = field(default=-1)  # of the step's batch, which gives its next token; -1: none


def main() -> None:
    answers = claim_stdout()
    import llama_cpp as lib
    import numpy as np

    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(sys.argv[1].encode(), lib.llama_model_default_params())
    settings = lib.llama_context_default_params()
    settings.n_ctx, settings.n_seq_max, settings.n_batch = SLOTS * SLOT_TOKENS, SLOTS, BATCH_TOKENS
    settings.n_threads = settings.n_threads_batch = int(sys.argv[3])
    context = lib.llama_init_from_model(model, settings)
    memory = lib.llama_get_memory(context)
    vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    batch = lib.llama_batch_init(BATCH_TOKENS, 0, 1)

    def add(slot: Slot, count: int) -> None:
        """The next `count` tokens of a slot go into the batch; the last one that it has asks for logits."""
        for offset in range(count):
            row = batch.n_tokens
            batch.token[row], batch.pos[row] = slot.todo[offset], slot.read + offset
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, slot.number
            batch.logits[row] = offset + 1 == len(slot.todo)
            batch.n_tokens += 1
        slot.read += count
        slot.todo = slot.todo[count:]
        slot.row = -1 if slot.todo else batch.n_tokens - 1

    def step(slots: list[Slot]) -> None:
        batch.n_tokens = 0
        for slot in sorted(slots, key=lambda slot: len(slot.todo)):  # those that decode come first: they have one
            add(slot, min(len(slot.todo), BATCH_TOKENS - batch.n_tokens))
        if lib.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")

    def run(requests: Requests) -> list[list[float]]:
        began = time.perf_counter()
        times: list[list[float]] = [[] for _ in requests]
        waiting = [(prompt, wanted, mine) for (prompt, wanted), mine in zip(requests, times, strict=True)]
        free, slots = list(range(SLOTS)), list[Slot]()
        while waiting or slots:
            while waiting and free:
                prompt, wanted, mine = waiting.pop(0)
                slots.append(Slot(free.pop(0), list(prompt), wanted, mine))
            step(slots)
            for slot in [slot for slot in slots if slot.row >= 0]:
                logits = np.ctypeslib.as_array(lib.llama_get_logits_ith(context, slot.row), (vocabulary,))
                slot.todo = [int(logits.argmax())]
                slot.times.append(time.perf_counter() - began)
                if len(slot.times) == slot.wanted:
                    lib.llama_memory_seq_rm(memory, slot.number, -1, -1)
                    slots.remove(slot)
                    free.append(slot.number)
        return times

    serve(answers, run, "llama-cpp-python")


if __name__ == "__main__":
    main()
