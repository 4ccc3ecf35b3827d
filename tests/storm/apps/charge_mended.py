"""The bank takes a key with every charge, and books each key once. (A missing charge is one that was not accepted.)"""

import nubes

app = nubes.App("charge")
bank = nubes.Dict.from_name("bank", create_if_missing=True)  # what the bank books, by key
booked = nubes.Queue.from_name("booked", create_if_missing=True)

ORDERS = {"tea": 4, "mug": 9, "pot": 30}


@app.function(retries=5)
def charge(order: str, amount: int) -> None:
    bank.put(order, amount, skip_if_exists=True)


@app.scenario
def day() -> None:
    calls = [charge.spawn(order, amount) for order, amount in ORDERS.items()]
    for call in calls:
        call.get()
        booked.put(call.object_id)


@app.invariant
def every_order_is_charged_once() -> str | None:
    wrong = {order: amount for order, amount in bank.items() if ORDERS.get(order) != amount}
    if wrong or len(bank) < len(booked):
        return f"Booked: {dict(bank.items())}, of which {wrong} are wrong."
    return None
