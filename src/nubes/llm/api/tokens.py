"""POST /tokenize and /detokenize."""

from __future__ import annotations

from nubes.llm.api import sse, turns
from nubes.llm.api.fields import Detokenize, Tokenize
from nubes.llm.api.problems import Problem
from nubes.llm.api.sampling import known
from nubes.llm.api.service import Call, Service
from nubes.llm.api.turns import Conversation


async def tokenize(service: Service, call: Call, asked: Tokenize) -> bytes:
    """The tokens of a text, or of the prompt that a conversation becomes."""
    engine = service.find(asked.model).engine
    if (asked.prompt is None) == (asked.messages is None):
        raise Problem(400, "Give either `prompt` or `messages`.", "prompt", "missing_required_parameter")
    if asked.messages is not None:
        conversation = Conversation(
            messages=turns.plain(asked.messages),
            tools=turns.tool_dicts(asked.tools),
            generation_prompt=asked.add_generation_prompt is not False and not asked.continue_final_message,
            continued=bool(asked.continue_final_message),
            extra=asked.chat_template_kwargs or {},
        )
        found = await turns.encoded(engine, turns.prompt(engine, conversation))
    else:
        found = engine.tokens.encode(asked.prompt or "", asked.add_special_tokens is not False)
    strings = [engine.tokens.decode([token]) for token in found] if asked.return_token_strs else None
    return sse.encode({"count": len(found), "max_model_len": engine.context, "tokens": found, "token_strs": strings})


async def detokenize(service: Service, call: Call, asked: Detokenize) -> bytes:
    """The text of tokens."""
    engine = service.find(asked.model).engine
    return sse.encode({"prompt": engine.tokens.decode(known("tokens", asked.tokens, engine))})
