import os
import time

import nubes

app = nubes.App("replicas")


@app.function(cpu=0.01, min_instances=3, hedging="tail-at-scale(delay=50ms)", balancing="round-robin", idempotent=True)
def hedged(data: bytes) -> tuple[int, int]:
    time.sleep(0.01)
    return os.getpid(), len(data)


@app.function(cpu=0.01, min_instances=3, balancing="least-loaded")
@nubes.concurrent(max_inputs=4)
def balanced(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()
