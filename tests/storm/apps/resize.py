"""Pictures wait in a queue. A worker that dies with one in its hands takes it along."""

import nubes

app = nubes.App("resize")
waiting = nubes.Queue.from_name("waiting", create_if_missing=True)
small = nubes.Dict.from_name("small", create_if_missing=True)

PICTURES = ["cat", "dog", "owl", "fox"]


@app.function(retries=5)
def work() -> None:
    while (picture := waiting.get(block=False)) is not None:
        small[picture] = f"{picture}, small"


@app.scenario
def day() -> None:
    waiting.put_many(PICTURES)
    workers = [work.spawn() for _ in range(2)]
    for worker in workers:
        worker.get()


@app.invariant
def every_picture_gets_small() -> str | None:
    if len(waiting):
        return None  # nobody has worked through them
    missing = [picture for picture in PICTURES if picture not in small]
    return f"Missing: {missing}." if missing and len(small) else None
