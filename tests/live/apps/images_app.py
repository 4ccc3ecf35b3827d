"""What a function finds around it, for the tests of images."""

from __future__ import annotations


def what_is_there() -> dict[str, object]:
    import importlib
    import importlib.util
    import os
    import sys

    seen: dict[str, object] = {"greeting": "", "colour": os.environ.get("COLOUR", ""), "prefix": sys.prefix}
    try:
        import greeting  # type: ignore[import-not-found]

        seen["greeting"] = greeting.TEXT
    except ImportError:
        pass
    seen["host"] = [name for name in ("pytest", "numpy", "rich", "starlette") if importlib.util.find_spec(name)]
    seen["platformdirs"] = getattr(importlib.import_module("platformdirs"), "MARK", "nubes' own")
    seen["nubes"] = sorted(
        name for name in ("nubes", "msgspec", "cloudpickle", "cronsim") if importlib.util.find_spec(name)
    )
    import nubes

    seen["is_local"] = nubes.is_local()
    return seen
