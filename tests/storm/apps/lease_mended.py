"""No lease: every deposit is an entry of its own, at the next place that nobody has taken."""

import nubes

app = nubes.App("lease")
entries = nubes.Dict.from_name("entries", create_if_missing=True)
told = nubes.Dict.from_name("told", create_if_missing=True)


@app.function(timeout="10m")
def deposit(amount: int) -> bool:
    place = len(entries)
    while not entries.put(place, amount, skip_if_exists=True):
        place += 1
    return True


@app.scenario
def day() -> None:
    amounts = [5, 7, 11]
    for amount, done in zip(amounts, deposit.map(amounts, return_exceptions=True), strict=True):
        if done is True:
            told["sum"] = told.get("sum", 0) + amount


@app.invariant
def no_deposit_is_lost() -> str | None:
    there = sum(entries.values())
    return f"{told['sum']} was deposited, {there} is there." if there < told.get("sum", 0) else None
