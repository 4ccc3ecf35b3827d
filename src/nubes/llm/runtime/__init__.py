"""Runs decoder models: one ragged step over a paged KV cache, through a small compiled extension or in PyTorch."""
