"""From the fields of a request to `Sampling`."""

from __future__ import annotations

import json

from nubes.llm.api.fields import Format, Generate
from nubes.llm.api.problems import Problem, invalid
from nubes.llm.live import Engine
from nubes.llm.spec import Grammar, Sampling

_TIERS = {"flex": 1, "priority": -1}


def sampling(
    asked: Generate, engine: Engine, *, max_tokens: int | None, stop: str | list[str] | None, logprobs: int | None,
    grammar: Grammar | None, prompt_logprobs: int | None = None,
) -> Sampling:  # fmt: skip
    """How to choose tokens. Raises `Problem` for what does not fit the engine's vocabulary."""

    def given(value: float | None, default: float) -> float:
        return default if value is None else value

    if max_tokens is not None and (asked.min_tokens or 0) > max_tokens:
        raise invalid("min_tokens", f"min_tokens is {asked.min_tokens}, more than the {max_tokens} tokens allowed.")
    return Sampling(
        max_tokens=max_tokens,
        min_tokens=asked.min_tokens or 0,
        temperature=given(asked.temperature, 1.0),
        top_p=given(asked.top_p, 1.0),
        top_k=max(asked.top_k or 0, 0),
        min_p=asked.min_p or 0.0,
        presence_penalty=asked.presence_penalty or 0.0,
        frequency_penalty=asked.frequency_penalty or 0.0,
        repetition_penalty=given(asked.repetition_penalty, 1.0),
        logit_bias=_bias(asked.logit_bias or {}, engine.tokens.vocab),
        seed=None if asked.seed is None else asked.seed & (2**63 - 1),
        stop=() if stop is None else (stop,) if isinstance(stop, str) else tuple(stop),
        stop_token_ids=tuple(known("stop_token_ids", asked.stop_token_ids or [], engine)),
        include_stop=bool(asked.include_stop_str_in_output),
        ignore_eos=bool(asked.ignore_eos),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        grammar=grammar,
    )


def priority(asked: Generate) -> int:
    """Lower goes first. `priority` says it; otherwise the service tier."""
    return asked.priority if asked.priority is not None else _TIERS.get(asked.service_tier or "", 0)


def known(field: str, tokens: list[int], engine: Engine) -> list[int]:
    """`tokens`, all of them the model's."""
    vocab = engine.tokens.vocab
    for token in tokens:
        if token >= vocab:
            raise invalid(field, f"{token} is no token of {engine.name}: they go from 0 to {vocab - 1}.")
    return tokens


def _bias(bias: dict[str, float], vocab: int) -> dict[int, float]:
    found = {}
    for name, value in bias.items():
        if not name.isdecimal() or int(name) >= vocab:
            raise invalid("logit_bias", f"logit_bias: {name!r} is no token: they go from 0 to {vocab - 1}.")
        found[int(name)] = value
    return found


def grammar(asked: Generate, format: Format | None = None) -> Grammar | None:
    """The one thing that the output has to look like. Raises `Problem` if there are two."""
    found: dict[str, Grammar] = {}
    if format is not None and format.type == "json_object":
        found["response_format"] = Grammar("json_object")
    elif format is not None and format.type == "json_schema":
        if format.json_schema is None:
            message = "response_format of type json_schema needs `json_schema` with a `schema` in it."
            raise Problem(400, message, "response_format.json_schema", "missing_required_parameter")
        found["response_format"] = Grammar("json_schema", json.dumps(format.json_schema.schema))
    if asked.guided_json is not None:
        found["guided_json"] = _schema(asked.guided_json)
    if asked.guided_regex is not None:
        found["guided_regex"] = Grammar("regex", asked.guided_regex)
    if asked.guided_choice is not None:
        found["guided_choice"] = Grammar("choice", json.dumps(asked.guided_choice))
    if asked.guided_grammar is not None:
        found["guided_grammar"] = Grammar("lark", asked.guided_grammar)
    structure = asked.structured_outputs
    if structure is not None:
        if structure.json is not None:
            found["structured_outputs.json"] = _schema(structure.json)
        if structure.json_object:
            found["structured_outputs.json_object"] = Grammar("json_object")
        if structure.regex is not None:
            found["structured_outputs.regex"] = Grammar("regex", structure.regex)
        if structure.choice is not None:
            found["structured_outputs.choice"] = Grammar("choice", json.dumps(structure.choice))
        if structure.grammar is not None:
            found["structured_outputs.grammar"] = Grammar("lark", structure.grammar)
    if len(found) > 1:
        raise invalid(list(found)[1], f"Only one of {' and '.join(found)} can shape the output.")
    return next(iter(found.values()), None)


def _schema(schema: str | dict[str, object]) -> Grammar:
    return Grammar("json_schema", schema if isinstance(schema, str) else json.dumps(schema))
