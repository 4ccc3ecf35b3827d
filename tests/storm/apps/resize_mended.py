"""A picture leaves the list only when its work is done; that two workers may do the same one is harmless."""

import nubes

app = nubes.App("resize")
waiting = nubes.Dict.from_name("waiting", create_if_missing=True)
small = nubes.Dict.from_name("small", create_if_missing=True)

PICTURES = ["cat", "dog", "owl", "fox"]


@app.function(retries=5)
def work() -> None:
    for picture in list(waiting.keys()):
        small[picture] = f"{picture}, small"
        waiting.pop(picture, None)


@app.scenario
def day() -> None:
    waiting.update(dict.fromkeys(PICTURES, True))
    workers = [work.spawn() for _ in range(2)]
    for worker in workers:
        worker.get()


@app.invariant
def every_picture_gets_small() -> str | None:
    missing = [picture for picture in PICTURES if picture not in small and picture not in waiting]
    return f"Missing: {missing}." if missing and len(small) else None
