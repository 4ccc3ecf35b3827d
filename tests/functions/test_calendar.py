"""Schedules come round when a calendar says so."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from nubes.functions.calendar import next_time
from nubes.functions.spec import Schedule
from nubes.kernel.errors import UsageError


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def test_a_period_counts_from_now() -> None:
    assert next_time(Schedule(period_s=90.0), 1000.5) == 1090.5


@pytest.mark.parametrize(
    ("cron", "zone", "now", "then"),
    [
        ("*/15 * * * *", "UTC", "2026-03-01T10:07:12", "2026-03-01T10:15:00"),
        ("*/15 * * * *", "UTC", "2026-03-01T10:15:00", "2026-03-01T10:30:00"),
        ("0 9 * * 1-5", "Europe/Berlin", "2026-03-06T09:00:01", "2026-03-09T09:00:00"),  # Friday to Monday
        ("0 0 29 2 *", "UTC", "2026-01-01T00:00:00", "2028-02-29T00:00:00"),
        ("30 6 * * *", "Europe/Berlin", "2026-03-28T07:00:00", "2026-03-29T06:30:00"),  # over the change to summer time
        ("30 6 * * *", "America/New_York", "2026-10-31T07:00:00", "2026-11-01T06:30:00"),  # and back
    ],
)
def test_cron(cron: str, zone: str, now: str, then: str) -> None:
    assert next_time(Schedule(cron=cron, timezone=zone), at(now, zone)) == at(then, zone)


@pytest.mark.parametrize("cron", ["", "hourly", "* * * *", "61 * * * *", "0 0 30 2 *"])
def test_what_is_no_cron_expression(cron: str) -> None:
    with pytest.raises(UsageError, match="is not a cron expression"):
        next_time(Schedule(cron=cron), 0.0)


@pytest.mark.parametrize("zone", ["Nowhere", "../etc/passwd"])
def test_what_is_no_time_zone(zone: str) -> None:
    with pytest.raises(UsageError, match="There is no time zone"):
        next_time(Schedule(cron="* * * * *", timezone=zone), 0.0)
