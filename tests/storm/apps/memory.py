"""A meter adds up in memory what it is told. The sum is gone with the instance that held it."""

import nubes

app = nubes.App("meter")
told = nubes.Dict.from_name("told", create_if_missing=True)


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
        told["sum"] = told.get("sum", 0) + amount
        try:
            told["total"] = meter.add.remote(amount)
        except nubes.NubesError:
            told["sum"] -= amount  # it was not counted, and nobody says it was


@app.invariant
def the_total_is_the_sum() -> str | None:
    total, right = told.get("total", 0), told.get("sum", 0)
    return f"The meter says {total}, it was told {right}." if total < right else None
