"""Step models by name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from nubes.kernel.errors import UsageError
from nubes.llm.models.cpu import cpu
from nubes.llm.models.lin import lin
from nubes.llm.models.lora import lora
from nubes.llm.models.opt import opt
from nubes.llm.models.tab import tab
from nubes.llm.models.vidur import vidur
from nubes.llm.scheduling.load import StepModel

MODELS: dict[str, Callable[..., StepModel]] = {
    "opt": opt,
    "lin": lin,
    "lora": lora,
    "tab": tab,
    "vidur": vidur,
    "cpu": cpu,
}
EXAMPLES = (
    "opt(opt-13b,tp=1), lin(llama-3-8b,gpu=a100,tp=1), lora(llama-2-7b,gpu=a10), tab(llama-2-70b,gpu=h100,tp=8), "
    "vidur(llama-3-8b), cpu(PATH)"
)


def step_model(text: str) -> StepModel:
    """`name(first,key=value,...)`: the first argument is the LLM, or the path of a saved fit.

    Raises `UsageError`, with what there is, for a name, an argument or a profile that is unknown.
    """
    match = re.fullmatch(r"\s*([a-z]+)\s*(?:\((.*)\))?\s*", text)
    if match is None or match[1] not in MODELS:
        raise UsageError(f"There is no step model {text!r}.", f"There are: {EXAMPLES}.")
    make = MODELS[match[1]]
    parameters = inspect.signature(make).parameters
    given: dict[str, Any] = {}
    for index, part in enumerate(filter(None, (part.strip() for part in (match[2] or "").split(",")))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals and index == 0:
            key, value = next(iter(parameters)), part
        if key not in parameters or key in given:
            raise UsageError(f"{part!r} in {text} is no argument.", f"It takes: {', '.join(parameters)}.")
        given[key] = _typed(value, str(parameters[key].annotation), part, text)
    missing = [name for name, of in parameters.items() if of.default is of.empty and name not in given]
    if missing:
        raise UsageError(f"{text} lacks its {missing[0]}.", f"As in: {EXAMPLES}.")
    return make(**given)


def _typed(value: str, annotation: str, part: str, text: str) -> str | int | float:
    """As the parameter wants it: whole numbers from one, numbers from zero, or text."""
    kind: Any = int if annotation.startswith("int") else float if annotation == "float" else str
    try:
        number: str | int | float = kind(value)
    except ValueError:
        raise UsageError(f"{part!r} in {text}: {value!r} is no number.", "Write it in digits.") from None
    if not isinstance(number, str) and not (1 if kind is int else 0) <= number < 1e12:
        raise UsageError(f"{part!r} in {text} is out of range.", "Whole numbers start at 1, others at 0.")
    return number
