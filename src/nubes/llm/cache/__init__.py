"""KV from elsewhere than the last prompt: states that restore it, and texts whose KV is put together."""
