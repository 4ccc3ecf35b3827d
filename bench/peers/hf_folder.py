"""Writes a GGUF file as a Hugging Face folder in fp32, for peers that do not read GGUF: hf_folder.py GGUF FOLDER."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
    dequantized = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    config = dequantized.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = type(dequantized)(config).float()  # a fresh one: transformers does not save a model read from GGUF
    model.load_state_dict(dequantized.state_dict())
    model.save_pretrained(unfinished)
    (unfinished / "model.safetensors").chmod(0o644)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(unfinished)
    unfinished.rename(folder)  # all or nothing


if __name__ == "__main__":
    main()
