from __future__ import annotations

from collections.abc import Iterator

from nubes.papers import Context, Result


def live(ctx: Context) -> Iterator[Result]:
    from nubes.papers.prequal import ROBIN, WEIGHTED

    yield from ctx.all_unmeasured((ROBIN, WEIGHTED), "later", "live")
