"""A shop charges cards. The charge is made first and noted second: who retries in between charges twice."""

import nubes

app = nubes.App("charge")
bank = nubes.Queue.from_name("bank", create_if_missing=True)  # what the bank books: one item is one charge
charged = nubes.Dict.from_name("charged", create_if_missing=True)

ORDERS = {"tea": 4, "mug": 9, "pot": 30}


@app.function(retries=5)
def charge(order: str, amount: int) -> None:
    if order in charged:
        return
    bank.put((order, amount))
    charged[order] = amount


@app.scenario
def day() -> None:
    calls = [charge.spawn(order, amount) for order, amount in ORDERS.items()]
    for call in calls:
        call.get()


@app.invariant
def every_order_is_charged_once() -> str | None:
    booked = [order for order, _ in bank.iterate()]
    wrong = {order: booked.count(order) for order in set(booked) if booked.count(order) != 1}
    return f"Charges by order: {wrong}." if wrong else None
