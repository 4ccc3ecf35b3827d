import nubes

app = nubes.App("replicas")
chat = app.llm("smollm2-135m", kv_memory="64MiB", replicas=2, migration="llumnix", routing="round-robin")
