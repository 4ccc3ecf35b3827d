from __future__ import annotations

from collections.abc import Iterator

from nubes.papers import Context, Result


def live(ctx: Context) -> Iterator[Result]:
    from nubes.papers.tail_at_scale import BACK, OUT, PAUSED, WORK

    yield from ctx.all_unmeasured((PAUSED, WORK, OUT, BACK), "later", "live")
