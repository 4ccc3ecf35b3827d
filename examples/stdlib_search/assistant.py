"""A small language model behind OpenAI's API: `nubes deploy examples/stdlib_search/assistant.py`."""

import nubes

app = nubes.App("assistant")
llm = app.llm("smollm2-135m", name="assistant", kv_memory="256MiB")
