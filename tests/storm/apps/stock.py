"""A shop with three mugs. Two instances that read the stock before either writes it sell the same mug twice."""

import nubes

app = nubes.App("stock")
stock = nubes.Dict.from_name("stock", create_if_missing=True)
sold = nubes.Queue.from_name("sold", create_if_missing=True)

MUGS = 3


@app.function()
def sell(customer: str) -> bool:
    left = stock["mugs"]
    if not left:
        return False
    stock["mugs"] = left - 1
    sold.put(customer)
    return True


@app.scenario
def day() -> None:
    stock["mugs"] = MUGS
    list(sell.map(["ann", "bob", "cyd", "dan", "eve"]))


@app.invariant
def no_mug_is_sold_twice() -> None:
    assert len(sold) + stock.get("mugs", MUGS) <= MUGS, f"{len(sold)} sold, {stock['mugs']} left, of {MUGS}"
