"""When a schedule comes round next."""

from __future__ import annotations

from datetime import datetime, timezone
from zoneinfo import ZoneInfo

from cronsim import CronSim

from nubes.functions.spec import Schedule


def next_time(schedule: Schedule, now: float) -> float:
    """The first time after `now` (epoch seconds). Raises `ValueError` on a cron expression that is none."""
    if schedule.period_s > 0:
        return now + schedule.period_s
    start = datetime.fromtimestamp(now, timezone.utc).astimezone(ZoneInfo(schedule.timezone))
    return float(next(CronSim(schedule.cron, start)).timestamp())
