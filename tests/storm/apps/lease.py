"""Who holds the lease may change the account. It runs out by the wall clock: a clock that jumps makes two holders."""

import time

import nubes

app = nubes.App("lease")
lease = nubes.Dict.from_name("lease", create_if_missing=True)
account = nubes.Dict.from_name("account", create_if_missing=True)

LEASE_S = 120.0


@app.function(timeout="10m")
def deposit(amount: int) -> bool:
    if not lease.put("until", time.time() + LEASE_S, skip_if_exists=True):
        until = lease.get("until")
        if until is None or time.time() < until:
            return False
        lease["until"] = time.time() + LEASE_S  # it ran out: its holder must be dead
    account["sum"] = account.get("sum", 0) + amount
    lease.pop("until", None)
    return True


@app.scenario
def day() -> None:
    amounts = [5, 7, 11]
    for amount, done in zip(amounts, deposit.map(amounts, return_exceptions=True), strict=True):
        if done is True:
            account["told"] = account.get("told", 0) + amount


@app.invariant
def no_deposit_is_lost() -> str | None:
    told, there = account.get("told", 0), account.get("sum", 0)
    return f"{told} was deposited, {there} is there." if there < told else None
