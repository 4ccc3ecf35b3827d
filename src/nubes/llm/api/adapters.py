"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter, as vLLM has them."""

from __future__ import annotations

import asyncio

from nubes.llm.api import sse
from nubes.llm.api.fields import LoadAdapter, UnloadAdapter
from nubes.llm.api.problems import Problem
from nubes.llm.api.service import Call, Service
from nubes.llm.errors import BrokenModel
from nubes.llm.live import Adapting


async def load(service: Service, call: Call, asked: LoadAdapter) -> bytes:
    """Serves the adapter in a folder on the server, as `lora_name` and `model:lora_name`."""
    try:
        await asyncio.to_thread(_engine(service, asked.model).load_adapter, asked.lora_name, asked.lora_path)
    except BrokenModel as error:
        raise Problem(400, str(error), "lora_path", "invalid_value") from None
    return sse.encode({"message": f"Success: LoRA adapter '{asked.lora_name}' added successfully."})


async def unload(service: Service, call: Call, asked: UnloadAdapter) -> bytes:
    """No new request gets the adapter; those that have it go on."""
    _engine(service, asked.model, asked.lora_name).unload_adapter(asked.lora_name)
    return sse.encode({"message": f"Success: LoRA adapter '{asked.lora_name}' removed successfully."})


def _engine(service: Service, model: str, adapter: str = "") -> Adapting:
    """That of `model`, of the adapter if no model is named, or the only one."""
    if not model and adapter and len(service.engines) > 1:
        model = next((name for name, engine in service.engines.items() if adapter in engine.adapters), "")
    engine = service.find(model).engine
    if not isinstance(engine, Adapting):
        raise Problem(400, "This model takes no adapters.", "model", "unsupported_parameter")
    return engine
