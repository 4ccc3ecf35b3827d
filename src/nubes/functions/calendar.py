"""When a schedule comes round next."""

from __future__ import annotations

from nubes.functions.spec import Schedule
from nubes.kernel.errors import UsageError


def next_time(schedule: Schedule, now: float) -> float:
    """The first time after `now` (epoch seconds). Raises `UsageError` on what is no cron expression or time zone."""
    if schedule.period_s > 0:
        return now + schedule.period_s
    # Only here: every parent of the process tree loads this module, and its forks copy what it holds.
    from datetime import UTC, datetime
    from zoneinfo import ZoneInfo

    from cronsim import CronSim, CronSimError

    try:
        start = datetime.fromtimestamp(now, UTC).astimezone(ZoneInfo(schedule.timezone))
        return float(next(CronSim(schedule.cron, start)).timestamp())
    except CronSimError as error:
        hint = 'Write five fields, as in "0 9 * * 1-5" (at 9:00 from Monday to Friday).'
        raise UsageError(f"{schedule.cron!r} is not a cron expression: {error}.", hint) from error
    except (KeyError, ValueError) as error:
        raise UsageError(f"There is no time zone {schedule.timezone!r}.", 'Write one as in "Europe/Berlin".') from error
