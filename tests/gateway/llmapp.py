import nubes

app = nubes.App("models")
chat = app.llm("smollm2-135m", kv_memory="16MiB", max_waiting=4)
embed = app.llm("all-minilm-l6-v2", kv_memory="1MiB")
