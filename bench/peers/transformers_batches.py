"""transformers' generate on static batches of 8, padded on the left. Arguments: model folder, dtype, threads."""

from __future__ import annotations

import sys
import time
from typing import Any

from answers import Requests, claim_stdout, serve

BATCH = 8


def main() -> None:
    answers = claim_stdout()
    import torch
    from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList

    torch.set_num_threads(int(sys.argv[3]))
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=getattr(torch, sys.argv[2])).eval()
    model.generation_config.eos_token_id = None  # exact lengths

    class Clock(StoppingCriteria):  # type: ignore[misc]
        """Is asked after each token: notes the time, never stops."""

        def __init__(self) -> None:
            self.ticks: list[float] = []

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            self.ticks.append(time.perf_counter())
            return torch.zeros(input_ids.shape[0], dtype=torch.bool)

    def run(requests: Requests) -> list[list[float]]:
        began = time.perf_counter()
        times: list[list[float]] = []
        for first in range(0, len(requests), BATCH):
            batch = requests[first : first + BATCH]
            width = max(len(prompt) for prompt, _ in batch)
            ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt, _ in batch])
            mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt, _ in batch])
            clock = Clock()
            with torch.inference_mode():
                model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    do_sample=False,
                    pad_token_id=0,
                    max_new_tokens=max(wanted for _, wanted in batch),
                    stopping_criteria=StoppingCriteriaList([clock]),
                )
            times += [[tick - began for tick in clock.ticks[:wanted]] for _, wanted in batch]
        return times

    serve(answers, run, "transformers", "torch")


if __name__ == "__main__":
    main()
