"""The app that the gateway's tests deploy."""

import asyncio
import contextlib
import dataclasses
import time

import nubes

app = nubes.App("web")


@app.function()
@nubes.fastapi_endpoint()
def hi(name: str, times: int = 1, tags: list[str] = []):  # noqa: B006
    """Greets."""
    return {"hello": name * times, "tags": tags}


@app.function()
@nubes.fastapi_endpoint(method="POST", requires_token=True)
def product(a: float, b: float = 2.0) -> float:
    return a * b


@app.function()
def echo(*args, **kwargs):
    print("echoing")
    return [list(args), kwargs]


@app.function()
def array(n: int):
    import numpy as np

    return {"x": np.arange(n), "m": np.float32(1.5), "nan": float("nan")}


@app.function()
def zeros(n: int):
    import numpy as np

    return np.zeros(n)


@dataclasses.dataclass
class Point:
    x: int


@app.function()
def point():
    return Point(3)


@app.function()
def bad(x: int = 0):
    raise ValueError("no good")


@app.function()
def die():
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


@app.function()
def slow(seconds: float):
    time.sleep(seconds)
    return seconds


@app.function()
def stamp(path: str):
    """Leaves a mark each time it runs."""
    with open(path, "a") as file:
        file.write("x")
    return "done"


@app.function(max_instances=1, max_queued=1)
def narrow(seconds: float):
    time.sleep(seconds)


@app.function(timeout=0.3)
def late():
    time.sleep(30)


@app.function()
def count(n: int, pause: float = 0.0):
    for i in range(n):
        time.sleep(pause)
        yield {"i": i}


@app.function()
def breaks(n: int):
    yield from range(n)
    raise ValueError("in the middle")


@app.cls()
class Counter:
    start: int = nubes.parameter(default=0)

    @nubes.enter()
    def setup(self):
        self.n = self.start

    @nubes.method()
    def up(self, by: int = 1):
        self.n += by
        return self.n

    @nubes.fastapi_endpoint()
    def show(self, x: int = 0):
        return {"n": self.start, "x": x}


@app.cls()
class Site:
    @nubes.enter()
    def setup(self):
        self.word = "class"

    @nubes.asgi_app()
    def pages(self):
        async def page(scope, receive, send):
            if scope["type"] != "http":
                raise RuntimeError("only HTTP here")
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": self.word.encode()})

        return page


@app.function()
@nubes.asgi_app()
def site():
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
    from starlette.routing import Route, WebSocketRoute

    @contextlib.asynccontextmanager
    async def lifespan(app):
        yield {"begun": 7}

    async def home(request):
        root = request.scope["root_path"]
        return JSONResponse(
            {"url": request.url.path, "root": root, "begun": request.state.begun, "q": dict(request.query_params)}
        )

    async def stream(request):
        async def parts():
            for i in range(3):
                yield f"{i} {time.monotonic()}\n"
                await asyncio.sleep(0.2)

        return StreamingResponse(parts(), media_type="text/plain")

    async def size(request):
        return PlainTextResponse(str(len(await request.body())), headers={"x-seen": request.headers.get("x-mine", "")})

    async def boom(request):
        raise RuntimeError("boom")

    async def talk(socket):
        await socket.accept()
        async for text in socket.iter_text():
            if text == "bye":
                await socket.close(4001)
                return
            await socket.send_text("echo " + text)

    routes = [
        Route("/", home),
        Route("/stream", stream),
        Route("/size", size, methods=["POST"]),
        Route("/boom", boom),
        WebSocketRoute("/talk", talk),
    ]
    return Starlette(routes=routes, lifespan=lifespan)
