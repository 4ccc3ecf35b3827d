"""The tensors of a Llama-family decoder, by their Hugging Face names, and those of GGUF for them."""

from __future__ import annotations

from collections.abc import Iterator

from nubes.llm.spec import Shape

EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm.weight"
HEAD = "lm_head.weight"

# What GGUF calls them.
_OUTER = {"token_embd.weight": EMBEDDING, "output_norm.weight": NORM, "output.weight": HEAD}
_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor; matrices are (outputs, inputs)."""
    query, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    sizes = {
        "input_layernorm": (shape.hidden,),
        "self_attn.q_proj": (query, shape.hidden),
        "self_attn.k_proj": (keys, shape.hidden),
        "self_attn.v_proj": (keys, shape.hidden),
        "self_attn.o_proj": (shape.hidden, query),
        "post_attention_layernorm": (shape.hidden,),
        "mlp.gate_proj": (shape.ffn, shape.hidden),
        "mlp.up_proj": (shape.ffn, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.ffn),
    }
    yield EMBEDDING, (shape.vocab, shape.hidden)
    for layer in range(shape.layers):
        for part, size in sizes.items():
            yield f"model.layers.{layer}.{part}.weight", size
    yield NORM, (shape.hidden,)
    if not shape.tied:
        yield HEAD, (shape.vocab, shape.hidden)


def name_of(gguf: str) -> str:
    """Hugging Face's name for a tensor of a GGUF file; a name that means nothing here stays as it is."""
    if gguf in _OUTER:
        return _OUTER[gguf]
    kind, _, rest = gguf.partition(".")
    layer, _, part = rest.partition(".")
    ours = _PARTS.get(part.removesuffix(".weight"))
    return f"model.layers.{layer}.{ours}.weight" if kind == "blk" and ours and part.endswith(".weight") else gguf
