"""Text to tokens and back, out of a tokenizer.json or the header of a GGUF file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nubes.kernel.errors import UsageError
from nubes.llm.checkpoint.chat import Chat
from nubes.llm.checkpoint.extras import needed
from nubes.llm.checkpoint.gguf import AGAIN, Gguf
from nubes.llm.checkpoint.gguf_model import field
from nubes.llm.checkpoint.huggingface import read_json
from nubes.llm.checkpoint.pretokenizers import PATTERNS, WHOLE, pretokenizer
from nubes.llm.errors import BrokenModel

if TYPE_CHECKING:
    import tokenizers

_CONTROL, _UNKNOWN, _USER = 3, 2, 4  # token types of GGUF
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others are characters from 256 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_level()


class Tokenizer:
    """`Tokens` by the library `tokenizers`.

    `encode` puts the token that begins a text in front where the model wants one and the text does not have it yet;
    not with `special=False`, which takes all of the text for plain text.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        ends: Iterable[int],
        special: Mapping[str, str],
        templates: Mapping[str, str],
    ) -> None:
        self._backend = backend
        self._bos = special.get("bos_token", "")
        added = backend.get_added_tokens_decoder()
        self._added = {token: b"" if one.special else one.content.encode() for token, one in added.items()}
        self._bytes = b'"ByteLevel"' in (backend.decoder.__getstate__() if backend.decoder else b"")
        self.vocab = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self._chat = Chat(templates, special)
        self.eos = frozenset(ends) | self._end_of_turn()

    def encode(self, text: str, special: bool = True) -> list[int]:
        backend = self._backend if special else self._plain
        begin = special and not (self._bos and text.startswith(self._bos))
        try:
            return backend.encode(text, add_special_tokens=begin).ids
        except (UnicodeEncodeError, TypeError):
            # Half of a surrogate pair, as JSON may bring it: what cannot be said in UTF-8 becomes U+FFFD.
            whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            return backend.encode(whole, add_special_tokens=begin).ids

    def decode(self, tokens: Sequence[int]) -> str:
        return self._backend.decode(list(tokens), skip_special_tokens=True)

    def piece(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token]
        text = self._backend.id_to_token(token)
        if text is None:
            return b""
        if self._bytes:
            try:
                return bytes(map(_BYTES.__getitem__, text))
            except KeyError:
                return text.encode()
        byte = _BYTE.fullmatch(text)
        return bytes.fromhex(byte[1]) if byte else text.replace("▁", " ").encode()

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
        **extra: Any,
    ) -> str:
        return self._chat.render(messages, tools, add_generation_prompt, **extra)

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """One that does not see control tokens. It is a switch of the library, and turning it per text would race."""
        plain = type(self._backend).from_str(self._backend.to_str())
        plain.encode_special_tokens = True
        return plain

    def _end_of_turn(self) -> set[int]:
        """The control token that the chat template puts after an answer, if it does."""
        tail = self._chat.after_answer()
        first = self._backend.encode(tail, add_special_tokens=False).ids[:1] if tail else []
        return {token for token in first if self._added.get(token) == b""}


def from_folder(folder: Path) -> Tokenizer:
    """From tokenizer.json and, where they are there, tokenizer_config.json, generation_config.json and config.json."""
    with needed():
        import tokenizers
    path = folder / "tokenizer.json"
    if not path.exists():
        raise BrokenModel(
            f"{folder} has no tokenizer.json.", "Save the model's fast tokenizer there (`save_pretrained`)."
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower class
        raise BrokenModel(f"{path} is damaged: {error}.", AGAIN) from None
    settings = _settings(folder / "tokenizer_config.json")
    special = {name: _content(settings.get(name)) for name in _SPECIAL if _content(settings.get(name))}
    ends = [backend.token_to_id(special.get("eos_token", ""))]
    for name in ("config.json", "generation_config.json"):
        found = _settings(folder / name).get("eos_token_id")
        ends.extend(found if isinstance(found, list) else [found])
    return Tokenizer(backend, (end for end in ends if type(end) is int), special, _templates(folder, settings))


def _settings(path: Path) -> dict[str, Any]:
    found = read_json(path) if path.exists() else {}
    if not isinstance(found, dict):
        raise BrokenModel(f"{path} is damaged: it is no JSON object.", AGAIN)
    return found


def _content(token: Any) -> str:
    """A token is written as its text or as an object that has it."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def _templates(folder: Path, settings: dict[str, Any]) -> dict[str, str]:
    path = folder / "chat_template.jinja"
    if path.exists():
        try:
            return {"default": path.read_text(encoding="utf-8")}
        except UnicodeDecodeError:
            raise BrokenModel(f"{path} is damaged: it is not UTF-8.", AGAIN) from None
    found = settings.get("chat_template")
    if isinstance(found, str):
        return {"default": found}
    listed = found if isinstance(found, list) else []
    return {str(one.get("name")): str(one.get("template")) for one in listed if isinstance(one, dict)}


def from_gguf(gguf: Gguf) -> Tokenizer:
    """Byte-level BPE from the file's header. Raises `UsageError` for other kinds."""
    with needed():
        import tokenizers
        from tokenizers import decoders, models, processors
    kind, cut = field(gguf, "tokenizer.ggml.model", str), field(gguf, "tokenizer.ggml.pre", str, "default")
    hint = "Use the model's Hugging Face folder, which has a tokenizer.json."
    if kind != "gpt2":
        raise UsageError(f"{gguf.path} has a tokenizer of the kind {kind}; supported: gpt2 (byte-level BPE).", hint)
    if cut not in PATTERNS:
        known = ", ".join(PATTERNS)
        raise UsageError(f"{gguf.path} cuts text by the rules of {cut}; supported: {known}.", hint)
    texts: list[str] = field(gguf, "tokenizer.ggml.tokens", list)
    types: list[int] = field(gguf, "tokenizer.ggml.token_type", list, [1] * len(texts))
    merges: list[str] = field(gguf, "tokenizer.ggml.merges", list)
    special = {name: _text_of(gguf, name, texts) for name in _SPECIAL if _text_of(gguf, name, texts)}
    begin = field(gguf, "tokenizer.ggml.add_bos_token", bool, cut in WHOLE)
    try:
        model = models.BPE(
            {text: token for token, text in enumerate(texts)},
            [(left, right) for left, right in (merge.split(" ") for merge in merges)],
            ignore_merges=cut in WHOLE,
        )
        backend = tokenizers.Tokenizer(model)
        backend.add_tokens(
            [
                tokenizers.AddedToken(text, special=type_ != _USER, normalized=False)
                for text, type_ in zip(texts, types, strict=False)
                if type_ in (_CONTROL, _UNKNOWN, _USER) and text
            ]
        )
        if begin and (bos := special.get("bos_token")):
            backend.post_processor = processors.TemplateProcessing([bos, "$A"], None, [(bos, backend.token_to_id(bos))])
    except Exception as error:  # a merge that is no pair, or of the library, which raises no narrower class
        raise BrokenModel(f"{gguf.path} is damaged: its tokenizer makes no sense ({error}).", AGAIN) from None
    backend.pre_tokenizer = pretokenizer(cut)
    backend.decoder = decoders.ByteLevel()
    ends = [gguf.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    prefix = "tokenizer.chat_template"
    templates = {
        key.removeprefix(prefix).lstrip(".") or "default": value
        for key, value in gguf.metadata.items()
        if key.startswith(prefix) and isinstance(value, str)
    }
    return Tokenizer(backend, (end for end in ends if type(end) is int), special, templates)


def _text_of(gguf: Gguf, name: str, texts: Sequence[str]) -> str:
    key = {"unk_token": "unknown", "pad_token": "padding"}.get(name, name.removesuffix("_token"))
    token = gguf.metadata.get(f"tokenizer.ggml.{key}_token_id")
    return texts[token] if isinstance(token, int) and 0 <= token < len(texts) else ""
