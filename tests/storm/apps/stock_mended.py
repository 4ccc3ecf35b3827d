"""Every mug is a key of its own, and belongs to who puts a name there first."""

import nubes

app = nubes.App("stock")
owners = nubes.Dict.from_name("owners", create_if_missing=True)
sold = nubes.Queue.from_name("sold", create_if_missing=True)

MUGS = 3


@app.function()
def sell(customer: str) -> bool:
    for mug in range(MUGS):
        if owners.put(mug, customer, skip_if_exists=True):
            sold.put(customer)
            return True
    return False


@app.scenario
def day() -> None:
    list(sell.map(["ann", "bob", "cyd", "dan", "eve"]))


@app.invariant
def no_mug_is_sold_twice() -> None:
    assert len(sold) <= len(owners) <= MUGS, f"{len(sold)} sold, {len(owners)} owned, of {MUGS}"
