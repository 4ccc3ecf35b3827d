"""A meter adds up in memory what it is told. The sum is gone with the instance that held it."""

import nubes

app = nubes.App("meter")
told = {"sum": 0, "total": 0}  # what the client knows: the scenario and the invariants are one process


@app.cls(max_instances=1)
class Meter:
    @nubes.enter()
    def begin(self) -> None:
        self.total = 0

    @nubes.method()
    def add(self, amount: int) -> int:
        self.total += amount
        return self.total


@app.scenario
def day() -> None:
    meter = Meter()
    for amount in (5, 7, 11):
        told["sum"] += amount
        try:
            told["total"] = meter.add.remote(amount)
        except nubes.NubesError:
            told["sum"] -= amount  # it was not counted, and nobody says it was


@app.invariant
def the_total_is_the_sum() -> str | None:
    total, right = told["total"], told["sum"]
    return f"The meter says {total}, it was told {right}." if total < right else None
