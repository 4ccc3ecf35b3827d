"""What users ask of a model, and what a model is, as plain data."""

from __future__ import annotations

from typing import Literal

import msgspec

Finish = Literal["stop", "length", "tool_calls", "abort", "error"]
Criterion = Literal["latency", "throughput", "ttft", "tpot"]

MOST_REPLICAS = 16


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of a Llama-family decoder; an attention group is `heads // kv_heads` query heads on one KV head."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context: int  # positions it was made for
    rope_theta: float = 10_000.0
    rope_factors: tuple[float, ...] = ()  # what each of the head_dim / 2 rope frequencies is divided by; (): nothing
    norm_eps: float = 1e-5
    tied: bool = True  # whether the output layer is the embedding

    @property
    def kv_values(self) -> int:
        """Numbers of KV that one token leaves over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    @property
    def parameters(self) -> int:
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        layer = attention + 3 * self.hidden * self.ffn + 2 * self.hidden
        return self.layers * layer + self.vocab * self.hidden * (1 if self.tied else 2) + self.hidden


class Grammar(msgspec.Struct, frozen=True):
    """What the output has to look like. `text`: a JSON schema, a regular expression, Lark rules or choices."""

    kind: Literal["json_object", "json_schema", "regex", "lark", "choice"]
    text: str = ""


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How the next token is chosen, and when to stop. The defaults change nothing about the model's distribution."""

    max_tokens: int | None = None  # None: as many as the context holds
    min_tokens: int = 0
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False  # whether the stop string is part of the text
    ignore_eos: bool = False
    logprobs: int | None = None  # None: none; otherwise that of the chosen token and as many of the likeliest
    prompt_logprobs: int | None = None  # the same of the prompt's tokens
    grammar: Grammar | None = None


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What a request is to the program that it is part of. `prefixes`: (hash, tokens) of its prompt's beginnings."""

    app: str  # the program
    begun_s: float = 0.0  # when that was asked for
    criterion: Criterion = "latency"
    depth: int = 1  # 1 + that of the deepest request whose answer it needs
    group: str = ""  # those that are wanted all together, for one that needs them all
    prefixes: tuple[tuple[str, int], ...] = ()  # the longest last


class Request(msgspec.Struct, kw_only=True):
    """One prompt, to be continued `n` times. Ids are the caller's and unique among those that run."""

    id: str
    prompt: list[int]
    sampling: Sampling = Sampling()
    n: int = 1
    adapter: str = ""
    user: str = ""  # whom fairness counts it to
    priority: int = 0  # lower goes first
    session: str = ""  # the conversation it continues
    cache_salt: str = ""  # requests with different ones share no KV
    chunks: tuple[int, ...] = ()  # tokens of the texts that the prompt begins with; their KV may be put together
    arrived_s: float = 0.0
    work: Work | None = None


class TokenLogprob(msgspec.Struct, frozen=True):
    """A token that was chosen, or is the prompt's, and the likeliest ones in its place, best first."""

    token: int
    text: str
    raw: bytes
    logprob: float
    top: tuple[tuple[int, str, bytes, float], ...] = ()
    rank: int = 0  # of a prompt's token among all


class Delta(msgspec.Struct):
    """What became known of one of a request's choices. The last one of a choice has `finish`.

    `text` is what may be shown: it holds back what could still become a stop string or half a character.
    `cached` is how many tokens of the prompt were not computed again.
    """

    index: int
    text: str = ""
    tokens: list[int] = []
    logprobs: list[TokenLogprob] | None = None
    finish: Finish | None = None
    stop_reason: str | int | None = None  # the stop string or token that ended it
    error: str = ""  # why, if finish is "error" or "abort"
    cached: int = 0
    prompt: list[TokenLogprob | None] | None = None  # of each of its tokens but the first, on a request's first delta
    queued_s: float | None = None  # on a request's first delta: from its arrival to the first step with it


class LLMSpec(msgspec.Struct, frozen=True, kw_only=True):
    """An LLM that is served. Policies are texts; "" is the seam's default."""

    model: str  # a name, path or GGUF file that `nubes.llm.checkpoint.find` knows
    name: str = ""  # what it is called in the API; "": the model's own
    format: str = "int8"
    device: str = "auto"
    threads: int = 0  # 0: all cores
    kv_memory_bytes: int = 1 << 30
    batching: str = ""
    ordering: str = ""
    preemption: str = ""
    retention: str = ""
    speculation: str = ""
    restoration: str = ""
    fusion: str = ""
    adapters: dict[str, str] = {}  # LoRA adapters: name -> folder
    replicas: int = 1  # engine processes that answer as one; threads and KV memory are those of each
    prefill_replicas: int = 0  # so many of them only compute prompts, and the others only answer
    routing: str = ""
    migration: str = ""
    scaling: str = ""
    max_waiting: int = 1024
    vllm_metrics: bool = False

    @property
    def label(self) -> str:
        return self.name or self.model
