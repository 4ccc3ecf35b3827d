"""Every kind of function and call in one app: what a storm has to know to play it."""

import asyncio
import datetime
import queue
import random
import time
import uuid

import nubes

app = nubes.App("kinds")
seen = nubes.Dict.from_name("seen", create_if_missing=True)
work = nubes.Queue.from_name("work", create_if_missing=True, max_items=2)


@app.function(retries=5)
def double(x: int) -> int:
    return 2 * x


@app.function(retries=5)
async def slowly(x: int) -> int:
    await asyncio.sleep(60)
    first, second = await asyncio.gather(double.remote.aio(x), double.remote.aio(x + 1))
    await seen.put.aio(("slowly", x), True)
    return first + second


@app.function()
def count(n: int):
    yield from range(n)


@app.function()
async def count_async(n: int):
    for number in range(n):
        await asyncio.sleep(1)
        yield number


@app.function(retries=5)
@nubes.batched(max_batch_size=4, wait_ms=50)
def squares(numbers: list[int]) -> list[int]:
    return [number * number for number in numbers]


@app.function(retries=5)
@nubes.concurrent(max_inputs=4)
def put(item: int) -> None:
    work.put(item)


@app.function(single_use=True, retries=5)
def once() -> str:
    return uuid.uuid4().hex + str(random.random())


@app.function(schedule=nubes.Period(hours=1), retries=5)
def hourly() -> None:
    stamp = datetime.datetime.now().isoformat()
    seen.put(("hourly", stamp), True)


@app.cls()
class Greeter:
    word: str = nubes.parameter(default="hello")

    @nubes.enter()
    def begin(self) -> None:
        self.made = seen.get("made", 0)

    @nubes.method()
    def greet(self, name: str) -> str:
        try:
            seen[name] = self.word
            time.sleep(10)
            return f"{self.word} {name}"
        finally:
            seen[("greeted", name)] = seen.get(name)

    @nubes.exit()
    def end(self) -> None:
        seen["exits"] = seen.get("exits", 0) + 1


@app.function(retries=5)
def refuse() -> None:
    raise ValueError("no")


answers: dict[str, object] = {}


@app.scenario
def day() -> None:
    began = time.monotonic()
    answers["map"] = list(double.map(range(70)))
    answers["unordered"] = sorted(double.map(range(5), order_outputs=False))
    answers["async"] = slowly.remote(3)
    answers["asyncio"] = asyncio.run(_together())
    answers["items"] = list(count.remote_gen(3)), list(count_async.remote_gen(3))
    answers["batch"] = sorted(squares.map(range(6)))
    answers["chain"] = double.then(double).remote(5)
    answers["key"] = [double.with_key("k").spawn(4).get() for _ in range(2)]
    answers["class"] = Greeter(word="hi").greet.remote("ann")
    calls = [put.spawn(item) for item in range(5)]
    answers["queue"] = [work.get(timeout="10m") for _ in range(5)]
    nubes.FunctionCall.gather(*calls)
    try:
        work.get(timeout=5)
    except queue.Empty:
        answers["empty"] = True
    answers["once"] = once.remote() != once.remote()
    try:
        refuse.remote()
    except ValueError as error:
        answers["refused"] = str(error)
    found = nubes.Function.from_name("kinds", "double")
    answers["found"] = found.remote(21)
    time.sleep(2 * 3600)
    answers["took"] = time.monotonic() - began >= 7200


async def _together() -> int:
    return sum(await asyncio.gather(*(double.remote.aio(x) for x in range(3))))


WANTED = {
    "map": [2 * x for x in range(70)], "unordered": [0, 2, 4, 6, 8], "async": 14, "asyncio": 6,
    "items": ([0, 1, 2], [0, 1, 2]), "batch": [0, 1, 4, 9, 16, 25], "chain": 20, "key": [8, 8], "class": "hi ann",
    "queue": [0, 1, 2, 3, 4], "empty": True, "once": True, "refused": "no", "found": 42, "took": True,
}  # fmt: skip


@app.invariant
def answers_are_right() -> str | None:
    wrong = {name: answer for name, answer in answers.items() if name not in ("queue",) and answer != WANTED[name]}
    return f"Wrong: {wrong}." if wrong else None


@app.invariant
def the_clock_called() -> str | None:
    if "took" in answers and sum(key[0] == "hourly" for key in seen.keys() if isinstance(key, tuple)) < 2:  # noqa: SIM118
        return "It did not."
    return None


@app.scenario
def brief() -> None:
    answers["async"] = shortly.remote(3)
    answers["asyncio"] = asyncio.run(_together())
    answers["items"] = list(count.remote_gen(3)), list(count_async.remote_gen(3))
    answers["batch"] = sorted(squares.map(range(6)))
    answers["chain"] = double.then(double).remote(5)


@app.function(retries=5)
async def shortly(x: int) -> int:
    first, second = await asyncio.gather(double.remote.aio(x), double.remote.aio(x + 1))
    return first + second
