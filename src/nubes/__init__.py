"""nubes: a cloud for ML and data work that you run yourself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "nubes.app": "App",
    "nubes.api.cls": "Cls",
    "nubes.api.function": "Function",
    "nubes.api.function_call": "FunctionCall",
    "nubes.api.decorators": (
        "Cron Period asgi_app batched concurrent enter exit fastapi_endpoint method parameter web_endpoint"
    ),
    "nubes.executor": "Executor map",
    "nubes.functions.spec": "Retries",
    "nubes.images": "Image",
    "nubes.place": "is_local",
    "nubes.storage": "Dict Queue Secret Volume",
    "nubes.kernel.errors": (
        "CallCancelled CallFailed CallTimeout FunctionExited InstanceDied NotFound NubesError Overloaded RemoteError "
        "Unavailable UsageError"
    ),
}
_NAMES = {name: module for module, names in _WHERE.items() for name in names.split()}

__all__ = [  # written out, so that type checkers can read it
    "App",
    "CallCancelled",
    "CallFailed",
    "CallTimeout",
    "Cls",
    "Cron",
    "Dict",
    "Executor",
    "Function",
    "FunctionCall",
    "FunctionExited",
    "Image",
    "InstanceDied",
    "NotFound",
    "NubesError",
    "Overloaded",
    "Period",
    "Queue",
    "RemoteError",
    "Retries",
    "Secret",
    "Unavailable",
    "UsageError",
    "Volume",
    "__version__",
    "asgi_app",
    "batched",
    "concurrent",
    "enter",
    "exit",
    "fastapi_endpoint",
    "is_local",
    "map",
    "method",
    "parameter",
    "web_endpoint",
]

if TYPE_CHECKING:
    from nubes.api.cls import Cls
    from nubes.api.decorators import (
        Cron,
        Period,
        asgi_app,
        batched,
        concurrent,
        enter,
        exit,
        fastapi_endpoint,
        method,
        parameter,
        web_endpoint,
    )  # fmt: skip
    from nubes.api.function import Function
    from nubes.api.function_call import FunctionCall
    from nubes.app import App
    from nubes.executor import Executor, map
    from nubes.functions.spec import Retries
    from nubes.images import Image
    from nubes.kernel.errors import (
        CallCancelled,
        CallFailed,
        CallTimeout,
        FunctionExited,
        InstanceDied,
        NotFound,
        NubesError,
        Overloaded,
        RemoteError,
        Unavailable,
        UsageError,
    )  # fmt: skip
    from nubes.place import is_local
    from nubes.storage import Dict, Queue, Secret, Volume


def __getattr__(name: str) -> Any:
    """Names are loaded when they are used, so that an instance pays only for what its function asks for."""
    if name in _NAMES:
        import importlib

        value = getattr(importlib.import_module(_NAMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'nubes' has no attribute {name!r}")
