"""An app that does not even work on a quiet day."""

import nubes

app = nubes.App("never")
kept = nubes.Dict.from_name("kept", create_if_missing=True)


@app.function()
def keep(number: int) -> None:
    kept[number] = True


@app.scenario
def day() -> None:
    keep.remote(1)


@app.invariant
def two_are_kept() -> None:
    assert len(kept) == 2
