"""The meter keeps each amount in a dict, by a key that its caller gives: what it knows outlives it."""

import nubes

app = nubes.App("meter")
amounts = nubes.Dict.from_name("amounts", create_if_missing=True)
told = {"sum": 0, "total": 0}  # what the client knows: the scenario and the invariants are one process


@app.cls(max_instances=1)
class Meter:
    @nubes.method()
    def add(self, key: str, amount: int) -> int:
        amounts[key] = amount
        return sum(amounts.values())


@app.scenario
def day() -> None:
    meter = Meter()
    for number, amount in enumerate((5, 7, 11)):
        told["sum"] += amount
        try:
            told["total"] = meter.add.remote(f"amount-{number}", amount)
        except nubes.NubesError:
            told["sum"] -= amount


@app.invariant
def the_total_is_the_sum() -> str | None:
    total, right = told["total"], told["sum"]
    return f"The meter says {total}, it was told {right}." if total < right else None
