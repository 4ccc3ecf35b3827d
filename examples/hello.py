"""The example of the README: `nubes run examples/hello.py`."""

import nubes

app = nubes.App("hello")


@app.function(retries=2, memory="256MiB")
def length(word: str) -> int:
    print("counting", word)
    return len(word)


@app.function()
@nubes.fastapi_endpoint()
def greet(name: str = "world") -> dict[str, str]:
    return {"greeting": f"Hello, {name}!"}


@app.local_entrypoint()
def main(text: str = "a cloud of your own") -> None:
    print(list(length.map(text.split())))
    print(length.spawn("later").get())
