"""Chat templates: messages to the one text that the model continues."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from nubes.kernel.errors import UsageError
from nubes.llm.checkpoint.extras import needed
from nubes.llm.errors import BrokenModel

if TYPE_CHECKING:
    import jinja2

Message = dict[str, Any]

# Models whose template knows nothing of tools get them as text, in the form that many small models were trained on
# (https://github.com/NousResearch/Hermes-Function-Calling).
TOOLS = (
    "You may call functions. Their signatures, as JSON:\n<tools>\n{tools}\n</tools>\n"
    "To call one, answer with its name and arguments as JSON within these tags:\n"
    '<tool_call>\n{{"name": NAME, "arguments": ARGUMENTS}}\n</tool_call>'
)
CALL = "<tool_call>\n{call}\n</tool_call>"


class Chat:
    """A model's templates by name (`default`, and for some models `tool_use`), rendered as `transformers` does."""

    def __init__(self, templates: Mapping[str, str], special: Mapping[str, str]) -> None:
        self._sources = dict(templates)
        self._special = dict(special)  # bos_token, eos_token, ...: templates write them

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **extra: Any,
    ) -> str:
        """`continue_final_message`: end within the last message, for the model to go on with it."""
        with needed():
            import jinja2
        name = "tool_use" if tools and "tool_use" in self._sources else "default"
        if name not in self._sources:
            hint = "Use completions, or give it one: chat_template.jinja in its folder."
            raise UsageError("This model has no chat template.", hint)
        plain = [_message(message) for message in messages]
        if not plain:
            raise UsageError("There are no messages.", "Send at least one, for example of the role user.")
        if "tools" not in self._sources[name]:
            plain, tools = _told(plain, tools), ()
        values = {**self._special, **extra, "messages": plain, "tools": [dict(tool) for tool in tools] or None}
        values["add_generation_prompt"] = add_generation_prompt and not continue_final_message
        try:
            text = self._template(name).render(**values)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise UsageError(f"The model's chat template refuses these messages: {error}.") from None
        return _within(text, plain[-1]["content"]) if continue_final_message else text

    def after_answer(self) -> str:
        """What the template writes after an answer; empty where that cannot be told."""
        mark = "answer"
        messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": mark}]
        try:
            return self.render(messages, add_generation_prompt=False).rpartition(mark)[2] if self._sources else ""
        except UsageError:
            return ""

    def _template(self, name: str) -> jinja2.Template:
        import jinja2

        if name not in self._compiled:
            try:
                self._compiled[name] = self._environment.from_string(self._sources[name])
            except jinja2.TemplateSyntaxError as error:
                hint = "Put a good one into the model's folder as chat_template.jinja."
                raise BrokenModel(f"The model's chat template is damaged: {error}.", hint) from None
        return self._compiled[name]

    @cached_property
    def _compiled(self) -> dict[str, jinja2.Template]:
        return {}

    @cached_property
    def _environment(self) -> jinja2.Environment:
        """Templates come with models, so they run in a sandbox. Globals and options are those they are written for."""
        from jinja2.ext import Extension, loopcontrols
        from jinja2.nodes import Node, Scope
        from jinja2.parser import Parser
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class Generation(Extension):
            """{% generation %} marks what the model wrote; only training wants to know."""

            tags = {"generation"}  # noqa: RUF012

            def parse(self, parser: Parser) -> Node:
                line = next(parser.stream).lineno
                return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
        )
        environment.filters["tojson"] = _json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        return environment


def _json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """As jinja's own, but without escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    import jinja2

    raise jinja2.TemplateError(message)


def _message(message: Mapping[str, Any]) -> Message:
    """With its text as one string, and the arguments of its tool calls as objects, as templates want them."""
    plain = dict(message)
    if not isinstance(plain.get("role"), str):
        raise UsageError("A message has no role.", "Roles are system, user, assistant and tool.")
    plain["content"] = _text(plain.get("content"))
    if plain.get("tool_calls"):
        plain["tool_calls"] = [_call(call) for call in plain["tool_calls"]]
    return plain


def _text(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, Sequence) else [content]
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise UsageError(f"This model reads text only; a message has a part of the type {kind}.", "Leave it out.")
        texts.append(text)
    return "\n".join(texts)


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call.get("function") or {})
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            function["arguments"] = json.loads(arguments)
        except ValueError:
            pass  # what the model wrote was no JSON, so it is shown as it was
    return {**call, "function": function}


def _told(messages: list[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Tools and calls as text, for a template that knows nothing of them."""
    told = []
    for message in messages:
        calls = [CALL.format(call=_json(_signature(call["function"]))) for call in message.get("tool_calls") or ()]
        told.append({**message, "content": "\n".join(filter(None, [message["content"], *calls]))})
    if tools:
        text = TOOLS.format(tools="\n".join(_json(dict(tool)) for tool in tools))
        if told[0]["role"] == "system":
            told[0]["content"] = f"{told[0]['content']}\n\n{text}"
        else:
            told.insert(0, {"role": "system", "content": text})
    return told


def _signature(function: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": function.get("name"), "arguments": function.get("arguments")}


def _within(text: str, content: str) -> str:
    """Up to the end of the last message's own text; templates may strip it."""
    for whole in (content, content.strip()):
        at = text.rfind(whole)
        if content.strip() and at >= 0:
            return text[: at + len(whole)]
    raise UsageError("The last message cannot be continued.", "It needs a text that the chat template writes.")
