"""Our own engine behind the same pipe as its peers; prefix caching off. Arguments: model, format, threads."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time

from answers import Requests, claim_stdout, serve


def main() -> None:
    answers = claim_stdout()
    model, format, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])

    from nubes.llm.engine.opening import open_engine
    from nubes.llm.spec import Request, Sampling

    engine = open_engine(model, format=format, threads=threads, retention="none")
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    names = itertools.count()

    async def one(prompt: list[int], wanted: int, began: float) -> list[float]:
        sampling = Sampling(temperature=0, max_tokens=wanted, ignore_eos=True)
        times: list[float] = []
        async for delta in engine.generate(Request(id=str(next(names)), prompt=prompt, sampling=sampling)):
            if delta.error:
                raise RuntimeError(delta.error)
            times += [time.perf_counter() - began] * len(delta.tokens)
        return times

    async def all_at_once(requests: Requests) -> list[list[float]]:
        began = time.perf_counter()
        return await asyncio.gather(*(one(prompt, wanted, began) for prompt, wanted in requests))

    serve(answers, lambda requests: loop.run_until_complete(all_at_once(requests)), "nubes")
    engine.close()


if __name__ == "__main__":
    main()
