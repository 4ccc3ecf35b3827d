"""Model files: Hugging Face folders and GGUF, their weights, tokenizers and chat templates."""

from nubes.llm.checkpoint.blocks import Affine, Blocks, affine, dequantise
from nubes.llm.checkpoint.checkpoint import Checkpoint, load
from nubes.llm.checkpoint.finding import available, find

__all__ = ["Affine", "Blocks", "Checkpoint", "affine", "available", "dequantise", "find", "load"]
