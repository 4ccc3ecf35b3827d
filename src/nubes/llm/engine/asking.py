"""What can be asked of a model at all."""

from __future__ import annotations

from nubes.kernel.errors import UsageError
from nubes.llm.errors import ContextTooLong
from nubes.llm.live import Tokens
from nubes.llm.spec import Request

MAX_WIDTH = 128  # answers to one prompt


def check(request: Request, tokens: Tokens, context: int) -> None:
    """Raises `UsageError`, or `ContextTooLong`, for what cannot be answered by a model of that context."""
    sampling, length = request.sampling, len(request.prompt)
    if not request.prompt:
        raise UsageError("The prompt is empty.", "Give at least one token.")
    if not 1 <= request.n <= MAX_WIDTH:
        raise UsageError(f"n={request.n} is out of range.", f"Ask for 1 to {MAX_WIDTH} answers.")
    if request.chunks and (min(request.chunks) < 1 or sum(request.chunks) >= length):
        raise UsageError(
            f"Chunks of {request.chunks} tokens do not fit a prompt of {length}.",
            "Give the length of each text that the prompt begins with, and let something follow them.",
        )
    if request.chunks and request.adapter:
        raise UsageError("A prompt with chunks cannot have an adapter.", "Leave out one of the two.")
    if not all(0 <= token < tokens.vocab for token in request.prompt):
        raise UsageError("The prompt holds a token that the model does not have.", f"It has {tokens.vocab}.")
    wanted = 1 if sampling.max_tokens is None else sampling.max_tokens
    if length + wanted > context:
        asked = f" and the {sampling.max_tokens} tokens asked for" if sampling.max_tokens is not None else ""
        raise ContextTooLong(
            f"The prompt of {length} tokens{asked} exceed{'s' if not asked else ''} the context of {context}.",
            "Shorten the prompt, or ask for fewer tokens.",
        )
    if sampling.grammar is not None:
        from nubes.llm.engine import structured

        structured.check(sampling.grammar, tokens)
