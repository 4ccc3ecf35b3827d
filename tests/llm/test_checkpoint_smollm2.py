"""SmolLM2-135M-Instruct as it is published, against the library `gguf` and `transformers`."""

from __future__ import annotations

import random
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nubes.kernel.errors import NotFound
from nubes.llm.checkpoint import Checkpoint, find, load
from tests.llm import checkpoint_files as files

pytest.importorskip("tokenizers", reason="tokenizers is not installed: pip install 'nubes[llm]'")
pytest.importorskip("jinja2", reason="jinja2 is not installed: pip install 'nubes[llm]'")


@pytest.fixture(scope="module")
def smollm2() -> Checkpoint:
    try:
        return load("smollm2-135m")
    except NotFound as error:
        pytest.skip(str(error))


def test_what_it_is(smollm2: Checkpoint) -> None:
    shape = smollm2.shape
    assert (shape.layers, shape.hidden, shape.heads, shape.kv_heads, shape.head_dim) == (30, 576, 9, 3, 64)
    assert (shape.ffn, shape.vocab, shape.context, shape.rope_theta, shape.tied) == (1536, 49152, 8192, 1e5, True)
    assert shape.parameters == 134_515_008
    assert sum(smollm2.tensor(name).size for name in smollm2.names if "layers" not in name) == 49152 * 576 + 576
    assert smollm2.raw("model.layers.3.mlp.up_proj.weight").kind == "Q4_1"
    assert smollm2.raw("lm_head.weight").kind == "Q8_0"


def test_tokens_and_chat(smollm2: Checkpoint) -> None:
    tokens = smollm2.tokens
    assert tokens.encode("The capital of France is") == [504, 3575, 282, 4649, 314]
    assert tokens.encode("<|im_start|>a 12") == [1, 81, 216, 33, 34]
    assert tokens.eos == {2}
    assert tokens.chat([{"role": "user", "content": "Hi"}]) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_tensors_are_those_of_the_package_of_the_format(smollm2: Checkpoint) -> None:
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(str(smollm2.path)).tensors}
    for name in smollm2.names:
        if "layers" in name and ".7." not in name:
            continue  # one layer tells of all
        tensor = theirs[files.gguf_name(name)]
        values, ours = gguf.dequantize(tensor.data, tensor.tensor_type), smollm2.tensor(name)
        heads = {"q_proj": 9, "k_proj": 3}.get(name.split(".")[-2])
        np.testing.assert_array_equal(files.interleaved(ours, heads) if heads else ours, values)


def texts(count: int) -> list[str]:
    """Code, words, spaces, scripts, digits of all kinds and control tokens."""
    rng = random.Random(5)
    code = Path(find.__code__.co_filename).read_text()
    ranges = [(32, 127), (0xA0, 0x250), (0x370, 0x500), (0x600, 0x6FF), (0x900, 0x97F), (0x4E00, 0x4F00)]
    ranges += [(0xAC00, 0xAC40), (0x1F300, 0x1F650), (0x2000, 0x2070), (0x2160, 0x2190), (0xFF00, 0xFFEF), (9, 14)]
    alphabet = [chr(code) for bounds in ranges for code in range(*bounds)]
    words = [
        "  ",
        "\n",
        "\n\n",
        "\t",
        "'s",
        "'LL",
        "don't",
        "12",
        "3.14",
        "½",
        "²",
        "x1",
        "<",
        "im_start",
        ">",
        "user",
        "Hello",
        "WORLD",
        "日本語",
        "👩\u200d👩\u200d👧",
        "é",
        "é",
        "{",
        "==",
        "\r\n",
    ]
    words += ["<|im_end|>", "<|endoftext|>", "<repo_name>", " "]
    made = []
    for i in range(count):
        if i % 3 == 0:
            start = rng.randrange(len(code))
            made.append(code[start : start + rng.randrange(300)])
        else:
            made.append("".join(rng.choice(alphabet if i % 3 == 1 else words) for _ in range(rng.randrange(40))))
    return made


@pytest.fixture(scope="module")
def theirs(smollm2: Checkpoint) -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    return transformers.AutoTokenizer.from_pretrained(smollm2.path.parent, gguf_file=smollm2.path.name)


@pytest.mark.slow
def test_tokens_are_those_of_transformers(smollm2: Checkpoint, theirs: Any) -> None:
    """From a GGUF, transformers 5 leaves out that this model's digits stand alone (`tokenizer.ggml.pre`), so texts with
    digits are compared with that put back, which is how the model's own tokenizer.json has it."""
    from tokenizers import pre_tokenizers

    made = texts(4000)
    for text in made:
        if not any(unicodedata.category(char).startswith("N") for char in text):
            assert smollm2.tokens.encode(text) == theirs.encode(text), text
    digits = pre_tokenizers.Digits(individual_digits=True)
    whole = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    theirs.backend_tokenizer.pre_tokenizer = whole
    for text in made:
        ids = smollm2.tokens.encode(text)
        assert ids == theirs.encode(text), text
        assert smollm2.tokens.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert smollm2.tokens.encode(text, special=False) == theirs.encode(text, split_special_tokens=True), text


@pytest.mark.slow
def test_chats_are_those_of_transformers(smollm2: Checkpoint, theirs: Any) -> None:
    rng = random.Random(3)
    other = (
        "{%- for m in messages -%}\n  {%- if m.role == 'system' %}\n[{{ m.content | trim }}]\n  {%- else %}\n"
        "{{ loop.index }}:{{ m | tojson }}{{ eos_token }}\n  {% endif %}\n{% endfor %}{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}"
    )
    for template in (theirs.chat_template, other):
        from nubes.llm.checkpoint.chat import Chat

        chat = Chat({"default": template}, {"eos_token": "<|im_end|>"})
        for turns in range(1, 21):
            system = [{"role": "system", "content": " Be brief.\n"}] if turns % 3 == 0 else []
            roles = ("user", "assistant")
            contents = rng.sample(texts(200), turns)
            messages = system + [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
            prompt = turns % 2 == 1
            tools = [{"type": "function", "function": {"name": "f"}}] if template == other and turns % 4 == 0 else None
            expected = theirs.apply_chat_template(
                messages, tools=tools, chat_template=template, add_generation_prompt=prompt, tokenize=False
            )
            assert chat.render(messages, tools or (), add_generation_prompt=prompt) == expected
            if template == theirs.chat_template:
                assert smollm2.tokens.chat(messages, add_generation_prompt=prompt) == expected


@pytest.mark.slow
def test_tensors_are_those_of_transformers(smollm2: Checkpoint) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch = pytest.importorskip("torch", reason="torch is not installed")
    for package in ("gguf", "accelerate"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.path.parent, gguf_file=smollm2.path.name, dtype=torch.float32
    )
    state = model.state_dict()
    assert set(smollm2.names) == set(state) - {"lm_head.weight"}
    for name in [*smollm2.names, "lm_head.weight"]:
        np.testing.assert_array_equal(smollm2.tensor(name), state[name].numpy(), err_msg=name)
