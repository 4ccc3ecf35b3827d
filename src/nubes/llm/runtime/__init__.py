"""Runs decoder models: one ragged step over a paged KV cache, on CPU through a small compiled extension, or in PyTorch."""
