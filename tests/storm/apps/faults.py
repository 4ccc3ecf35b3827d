"""What faults do, noted by those they happen to. Its invariant never holds: what it says are the notes."""

import time

import nubes

app = nubes.App("faults")
notes = nubes.Dict.from_name("notes", create_if_missing=True)
told: dict[str, object] = {}
times = 0


def bump(name: str) -> None:
    notes[name] = notes.get(name, 0) + 1


@app.function(retries=5)
def step() -> str:
    notes.put("begun", notes.get("begun", 0) + 1)
    try:
        return "done"
    finally:
        bump("finally")


@app.function(retries=5)
def inner() -> None:
    bump("inner")


@app.function()
def outer() -> str:
    inner.remote()
    return "done"


@app.function()
def clocks() -> tuple[int, int]:
    wall, steady = time.time(), time.monotonic()
    notes.get("nothing")
    return round(time.time() - wall), round(time.monotonic() - steady)


@app.function(retries=5, max_instances=1)
def remember() -> int:
    global times
    times += 1
    return times


@app.scenario
def day() -> None:
    told["step"] = step.spawn().get()
    try:
        told["outer"] = outer.remote()
    except nubes.NubesError as error:
        told["outer"] = type(error).__name__
        time.sleep(30)
        return
    told["clocks"] = clocks.remote()
    told["memory"] = [remember.remote() for _ in range(2)]


@app.invariant
def told_() -> str:
    return repr({**told, **dict(notes.items())})


app.invariants = {"told": told_}
