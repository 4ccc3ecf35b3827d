"""Structured output: which tokens may come next if the text is to follow a grammar.

`llguidance` does the work: it is one compiled wheel that depends on nothing, and its masks take microseconds where the
grammar has been before. `xgrammar`, which other engines use first, requires torch, transformers and triton.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nubes.kernel.errors import UsageError
from nubes.llm.live import Tokens
from nubes.llm.spec import Grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher

GRAMMARS = 256  # compiled ones that are kept, for each model
MODELS = 8


class Constraint:
    """One answer on its way through a grammar. Raises `UsageError` if the grammar is not one.

    The loop is: `mask`, choose one of those tokens, `advance` by it, until `done`.
    """

    def __init__(self, grammar: Grammar, tokens: Tokens) -> None:
        self._compiler = _compiler(tokens)
        self._matcher = self._compiler.matcher(grammar)

    @property
    def done(self) -> bool:
        """Whether nothing can follow but the end."""
        return bool(self._matcher.is_stopped())

    def mask(self) -> NDArray[np.bool_]:
        """bool[vocab]: the tokens that may come next. Once `done`, only those that end an answer."""
        if self.done:
            self._check()
            return self._compiler.ends
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return np.unpackbits(bits, count=self._compiler.vocab, bitorder="little").view(np.bool_)

    def advance(self, token: int) -> None:
        """Goes on by a token that the mask allowed. Raises `UsageError` for another."""
        if self.done and self._compiler.ends[token]:
            return
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise UsageError(f"The output left its grammar: {_short(self._matcher.get_error())}.")


def check(grammar: Grammar, tokens: Tokens) -> None:
    """Compiles a grammar, which may take a while the first time. Raises `UsageError` if it is not one."""
    _compiler(tokens).matcher(grammar)


class _Compiler:
    """A tokenizer as llguidance wants it, and the grammars compiled for it."""

    def __init__(self, tokens: Tokens) -> None:
        try:
            from llguidance import LLTokenizer
        except ImportError:
            raise UsageError("Structured output needs llguidance.", "Run `pip install 'nubes[llm]'`.") from None
        self.tokens = tokens
        self.vocab = tokens.vocab
        self.ends = np.zeros(self.vocab, np.bool_)
        self.ends[list(tokens.eos)] = True
        self.ends.flags.writeable = False
        self._lock = threading.Lock()
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        wrapped: Any = _Vocabulary(tokens)
        self._tokenizer = LLTokenizer(wrapped, n_vocab=self.vocab, eos_token=sorted(tokens.eos))

    def matcher(self, grammar: Grammar) -> LLMatcher:
        with self._lock:
            found = self._compiled.get(grammar)
            if found is not None:
                self._compiled.move_to_end(grammar)
                return found.deep_copy()
        compiled = self._compile(grammar)
        with self._lock:
            self._compiled[grammar] = compiled
            if len(self._compiled) > GRAMMARS:
                self._compiled.popitem(last=False)
            return compiled.deep_copy()

    def _compile(self, grammar: Grammar) -> LLMatcher:
        from llguidance import LLMatcher

        try:
            text = _text(grammar)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"The {_NAMES[grammar.kind]} is not valid: {error}.") from None
        matcher = LLMatcher(self._tokenizer, text, log_level=0)
        if matcher.is_error():
            raise UsageError(f"The {_NAMES[grammar.kind]} is not valid: {_short(matcher.get_error())}.")
        return matcher


_NAMES = {
    "json_object": "JSON grammar", "json_schema": "JSON schema", "regex": "regular expression", "lark": "grammar",
    "choice": "list of choices",
}  # fmt: skip


def _text(grammar: Grammar) -> str:
    """The grammar as llguidance wants it. Raises `ValueError` for what is not JSON where it should be."""
    from llguidance import LLMatcher

    match grammar.kind:
        case "json_object":
            return LLMatcher.grammar_from_json_schema({"type": "object"}, overrides=ONE_LINE)
        case "json_schema":
            schema = json.loads(grammar.text)
            if not isinstance(schema, (dict, bool)):
                raise ValueError(f"it is to be an object, not {grammar.text[:40]!r}")
            return LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=ONE_LINE)
        case "regex":
            return LLMatcher.grammar_from_regex(grammar.text)
        case "choice":
            choices = json.loads(grammar.text)
            if not isinstance(choices, list) or not choices or not all(isinstance(one, str) for one in choices):
                raise ValueError("it is to be a list of texts, at least one")
            return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(one) for one in choices))
        case "lark":
            return LLMatcher.grammar_from_lark(_lark(grammar.text))


def _lark(rules: str) -> str:
    """Rules as Lark's; those with `::=` are llama.cpp's GBNF."""
    if "::=" not in rules:
        return rules
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return any_to_lark(rules)
    except Exception as error:  # of several kinds, some of them bare
        raise ValueError(str(error)) from None


# JSON on one line, the way models learn it: where blanks may go on forever, small models let them.
ONE_LINE: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class _Vocabulary:
    """What llguidance reads of a tokenizer."""

    is_tokenizer_wrapper = True

    def __init__(self, tokens: Tokens) -> None:
        self.eos_token_id = min(tokens.eos)
        self.bos_token_id = None
        self.tokens: Sequence[bytes] = [tokens.piece(i) for i in range(tokens.vocab)]
        self.special_token_ids: Sequence[int] = []
        self._encode = tokens.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text, False)


_compilers: OrderedDict[int, _Compiler] = OrderedDict()
_lock = threading.Lock()


def _compiler(tokens: Tokens) -> _Compiler:
    """That of these tokens. It holds them, so that their id stays theirs."""
    with _lock:
        found = _compilers.get(id(tokens))
        if found is None:
            found = _compilers[id(tokens)] = _Compiler(tokens)
            if len(_compilers) > MODELS:
                _compilers.popitem(last=False)
        _compilers.move_to_end(id(tokens))
        return found


def _short(error: str) -> str:
    return " ".join(error.split())[:300].rstrip(".:")
