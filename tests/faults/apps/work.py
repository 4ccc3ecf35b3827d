"""Functions that leave a mark each time they run, so that a test can count the runs."""

import os
import time

import nubes

app = nubes.App("work")


def mark(folder, name):
    fd = os.open(os.path.join(folder, str(name)), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, b"x")
    os.close(fd)


@app.function(cpu=0.0)
def slow(folder, n, seconds=0.2):
    mark(folder, n)
    time.sleep(seconds)
    return n * n


@app.function()
def die_once(folder, n):
    first = not os.path.exists(os.path.join(folder, str(n)))
    mark(folder, n)
    if first:
        os._exit(3)
    return n


@app.function()
def die_always(n):
    os._exit(3)


@app.function()
def size(data):
    return len(data)


@app.function()
def spin():
    while True:
        pass


@app.function()
def pid():
    return os.getpid()


@app.function()
def plus(n):
    return n + 1


@app.function(max_queued=5, max_instances=1)
def narrow(seconds):
    time.sleep(seconds)
    return seconds


@app.function()
def bomb():
    import subprocess

    # Bounded by itself too: should nobody stop it, it ends after five seconds.
    code = "import os,time\nend=time.time()+5\nfor _ in range(700):\n if time.time()<end and os.fork()==0:\n  time.sleep(5); os._exit(0)\ntime.sleep(5)"
    subprocess.run(["python3", "-c", code])
    return "survived"


@app.function()
def double(array):
    return array * 2


@app.function(cpu=1.0)
def where(seconds):
    time.sleep(seconds)
    return os.environ["NUBES_SOCKET"]


@app.function()
def count(n):
    yield from range(n)


@app.function()
def nested(array):
    return float(double.remote(array).sum())


@app.function()
def beside():
    import besides

    return besides.TEXT


@app.function(cpu=0.5)
def make(megabytes):
    import numpy as np

    array = np.arange(megabytes * 131072, dtype=float)
    array[0] = sum(map(ord, os.environ["NUBES_SOCKET"]))
    return array


@app.function(cpu=0.5)
def measured(array):
    return array.nbytes, int(array[0]) == sum(map(ord, os.environ["NUBES_SOCKET"]))


@app.function(cpu=2.0)
def measured_elsewhere(array):
    return measured.local(array)


@app.function(cpu=2.0)
def occupy(seconds):
    time.sleep(seconds)
