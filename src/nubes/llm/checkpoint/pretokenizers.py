"""How text is cut before byte-level BPE, by the names that GGUF files use for it (`tokenizer.ggml.pre`).

The patterns are the published ones of the models' own tokenizers.
"""

from __future__ import annotations

from typing import Any

from nubes.llm.checkpoint.extras import needed

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# One after the other; each cuts the pieces of the one before.
PATTERNS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt-2", "gpt2", "mpt", "olmo", "jais"), (_GPT2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), (r"\p{N}", _GPT2)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "smaug-bpe", "dbrx"), (_WORDS + r"\p{N}{1,3}" + _REST,)),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen"), (_WORDS + r"\p{N}" + _REST,)),
    "tekken": (_TEKKEN,),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
}

# Those whose models take a piece that is a token whole, whatever the merges say.
WHOLE = frozenset({"llama-bpe", "llama3", "llama-v3", "tekken"})


def pretokenizer(name: str) -> Any:
    """The `tokenizers` pre-tokenizer of that name. Raises KeyError."""
    patterns = PATTERNS[name]
    with needed():
        from tokenizers import Regex, pre_tokenizers
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
