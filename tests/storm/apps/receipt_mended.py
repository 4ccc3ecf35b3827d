"""The order is handed in for good, and its receipt by a call that is kept, too: both run until they are through."""

import nubes

app = nubes.App("receipt")
orders = nubes.Dict.from_name("orders", create_if_missing=True)
receipts = nubes.Dict.from_name("receipts", create_if_missing=True)


@app.function(retries=5)
def send(order: str) -> None:
    receipts.put(order, True)


@app.function(retries=5)
def take(order: str) -> None:
    orders[order] = "taken"
    send.spawn(order)


@app.scenario
def day() -> None:
    for order in ("tea", "mug"):
        try:
            take.spawn(order).get()
        except nubes.NubesError:
            pass  # the client looks at its orders later


@app.invariant
def every_order_has_a_receipt() -> str | None:
    missing = [order for order in list(orders.keys()) if order not in receipts]
    return f"Without a receipt: {missing}." if missing else None
