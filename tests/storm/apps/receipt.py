"""An order is taken, then its receipt is sent by a call that nobody keeps: who dies in between sends none."""

import nubes

app = nubes.App("receipt")
orders = nubes.Dict.from_name("orders", create_if_missing=True)
receipts = nubes.Dict.from_name("receipts", create_if_missing=True)


@app.function()
def send(order: str) -> None:
    receipts.put(order, True)


@app.function()
def take(order: str) -> None:
    orders[order] = "taken"
    send.remote(order)


@app.scenario
def day() -> None:
    for order in ("tea", "mug"):
        try:
            take.remote(order)
        except nubes.NubesError:
            pass  # the client looks at its orders later


@app.invariant
def every_order_has_a_receipt() -> str | None:
    missing = [order for order in list(orders.keys()) if order not in receipts]
    return f"Without a receipt: {missing}." if missing else None
