"""Model files, whole and damaged: what is read is what was written, and nothing else gets through."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nubes.kernel.errors import NotFound, NubesError, UsageError
from nubes.llm.checkpoint import Checkpoint, load, rope
from nubes.llm.checkpoint.gguf import Gguf
from nubes.llm.errors import BrokenModel
from tests.llm import checkpoint_files as files
from tests.llm.checkpoint_files import SHAPE, Typed

pytest.importorskip("safetensors", reason="safetensors is not installed: pip install 'nubes[llm]'")
pytest.importorskip("tokenizers", reason="tokenizers is not installed: pip install 'nubes[llm]'")
pytest.importorskip("jinja2", reason="jinja2 is not installed: pip install 'nubes[llm]'")


def same_as_written(checkpoint: Checkpoint) -> None:
    assert checkpoint.shape == SHAPE
    written = files.weights()
    assert checkpoint.names == list(written)
    for name, matrix in written.items():
        np.testing.assert_array_equal(checkpoint.tensor(name), matrix)


def broken(path: Path, *words: str, kind: type[NubesError] = BrokenModel) -> None:
    with pytest.raises(kind) as caught:
        load(path)
    text = str(caught.value)
    assert str(path) in text
    assert caught.value.hint
    for word in words:
        assert word in text


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_a_gguf_has_hugging_faces_names_and_order_of_rows(tmp_path: Path, kind: str) -> None:
    path = files.gguf(tmp_path / "small.gguf", files.header(), files.gguf_tensors(kind))
    checkpoint = load(path)
    same_as_written(checkpoint)
    assert checkpoint.name == "small"
    assert checkpoint.bytes == path.stat().st_size
    assert checkpoint.raw(checkpoint.names[0]).kind == kind


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder(tmp_path: Path, kind: str, shards: int) -> None:
    checkpoint = load(files.folder(tmp_path / "small", kind, shards))
    same_as_written(checkpoint)
    assert checkpoint.name == "small"
    assert checkpoint.bytes == sum(path.stat().st_size for path in (tmp_path / "small").glob("*.safetensors"))


def test_quantised_rows_move_as_the_values_do(tmp_path: Path) -> None:
    tensors = files.gguf_tensors()
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 128, (64, 2, 34), dtype=np.uint8)  # rows of two blocks of Q8_0; halves stay finite
    tensors["blk.0.attn_q.weight"] = ("Q8_0", (64, 64), raw.tobytes())
    checkpoint = load(files.gguf(tmp_path / "m.gguf", files.header(), tensors))
    blocks = checkpoint.raw("model.layers.0.self_attn.q_proj.weight")
    assert blocks.shape == (64, 64)
    for head in range(4):
        for j in range(8):
            for half in range(2):
                theirs, ours = 16 * head + 2 * j + half, 16 * head + 8 * half + j
                assert blocks.data[ours].tobytes() == raw[theirs].tobytes()


def test_a_tied_head_is_the_embedding_and_one_of_its_own_is_not(tmp_path: Path) -> None:
    tensors = files.gguf_tensors()
    tied = load(files.gguf(tmp_path / "tied.gguf", files.header(), tensors))
    np.testing.assert_array_equal(tied.tensor("lm_head.weight"), tied.tensor("model.embed_tokens.weight"))
    head = np.arange(SHAPE.vocab * SHAPE.hidden, dtype=np.float32).reshape(SHAPE.vocab, SHAPE.hidden)
    tensors["output.weight"] = ("F32", head.shape, head.tobytes())
    apart = load(files.gguf(tmp_path / "apart.gguf", files.header(), tensors))
    assert not apart.shape.tied
    np.testing.assert_array_equal(apart.tensor("lm_head.weight"), head)


def test_writing_to_a_tensor_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    path = files.gguf(tmp_path / "m.gguf", files.header(), files.gguf_tensors())
    before = path.read_bytes()
    load(path).tensor("model.norm.weight")[:] = 7
    assert path.read_bytes() == before
    same_as_written(load(path))


def test_a_tensor_that_no_such_model_has(tmp_path: Path) -> None:
    checkpoint = load(files.folder(tmp_path))
    with pytest.raises(NotFound, match="no tensor nonsense"):
        checkpoint.tensor("nonsense")


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("align", [8, 32, 64])
def test_every_type_of_value(tmp_path: Path, version: int, align: int) -> None:
    numbers = {
        0: 255,
        1: -128,
        2: 65535,
        3: -32768,
        4: 2**32 - 1,
        5: -(2**31),
        6: 0.5,
        10: 2**64 - 1,
        11: -(2**63),
        12: 0.1,
    }
    metadata: dict[str, Any] = {f"n{kind}": Typed(kind, value) for kind, value in numbers.items()}
    metadata |= {f"a{kind}": [Typed(kind, value)] * 3 for kind, value in numbers.items()}
    metadata |= {
        "yes": True,
        "no": False,
        "bools": [True, False],
        "text": "grüße",
        "empty": "",
        "texts": ["a", "", "ß"],
    }
    metadata |= {"nothing": [], "deep": [[1, 2], [3]], "general.alignment": align}
    tensors = {name: ("F32", (3,), np.arange(3, dtype="<f4").tobytes()) for name in "xy"}
    gguf = Gguf(files.gguf(tmp_path / "m.gguf", metadata, tensors, version, align))
    assert {f"n{kind}": gguf.metadata[f"n{kind}"] for kind in numbers} == {
        f"n{kind}": value for kind, value in numbers.items()
    }
    assert all(gguf.metadata[f"a{kind}"] == [value] * 3 for kind, value in numbers.items())
    assert gguf.metadata["yes"] is True
    assert gguf.metadata["no"] is False
    assert gguf.metadata["bools"] == [True, False]
    assert (gguf.metadata["text"], gguf.metadata["empty"], gguf.metadata["texts"]) == ("grüße", "", ["a", "", "ß"])
    assert (gguf.metadata["nothing"], gguf.metadata["deep"]) == ([], [[1, 2], [3]])
    assert gguf.blocks("y").data.tolist() == [0, 1, 2]


def test_cut_short_anywhere(tmp_path: Path) -> None:
    path = files.gguf(tmp_path / "m.gguf", files.header(), files.gguf_tensors())
    whole = path.read_bytes()
    head = len(whole) - sum(len(raw) for _, _, raw in files.gguf_tensors().values())
    for size in [*range(0, head, 7), *range(head - 64, head + 64), *range(head, len(whole) - 1, 4999), len(whole) - 1]:
        path.write_bytes(whole[:size])
        broken(path)


def test_flipped_bytes_never_end_in_anything_but_our_errors(tmp_path: Path) -> None:
    path = files.gguf(tmp_path / "m.gguf", files.header(), files.gguf_tensors())
    whole = path.read_bytes()
    head = len(whole) - sum(len(raw) for _, _, raw in files.gguf_tensors().values())
    rng = random.Random(7)
    refused = 0
    for _ in range(400):
        flipped = bytearray(whole)
        flipped[rng.randrange(head)] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            use(load(path))
        except NubesError as error:
            refused += 1
            assert error.hint or isinstance(error, UsageError)
    assert refused > 100


def use(checkpoint: Checkpoint) -> None:
    for name in checkpoint.names:
        checkpoint.tensor(name)
    tokens = checkpoint.tokens
    for token in tokens.encode("hello <|im_start|> 1"):
        assert 0 <= token < checkpoint.shape.vocab
        tokens.piece(token)
    tokens.chat([{"role": "user", "content": "hello"}])


def test_gguf_files_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    def write(tensors: dict[str, Any] | None = None, version: int = 3, **changes: Any) -> Path:
        metadata = {**files.header(), **{key.replace("__", "."): value for key, value in changes.items()}}
        kept = {key: value for key, value in metadata.items() if value is not None}
        return files.gguf(tmp_path / "m.gguf", kept, tensors or files.gguf_tensors(), version)

    (tmp_path / "m.gguf").write_bytes(b"GGML" * 100)
    broken(tmp_path / "m.gguf", "not a GGUF file")
    broken(write(version=1), "version 1")
    broken(write(version=3 << 24), "big-endian")
    broken(write(general__architecture="qwen2"), "qwen2", "llama", kind=UsageError)
    broken(write(general__architecture=None), "general.architecture is missing")
    broken(write(llama__expert_count=8), "mixture of experts", kind=UsageError)
    broken(write(split__count=Typed(2, 3)), "one part", kind=UsageError)
    broken(write(llama__rope__dimension_count=8), "part of each head", kind=UsageError)
    broken(write(llama__block_count="two"), "llama.block_count")
    broken(write(llama__block_count=10**9), "lacks the tensor model.layers.2.")
    broken(write(llama__attention__head_count=0), "shape makes no sense")
    broken(write(llama__attention__head_count_kv=3), "shape makes no sense")
    broken(write(llama__feed_forward_length=95), "mlp.gate_proj", "(96, 64)", "(95, 64)")
    broken(write(general__alignment=0), "alignment")
    tensors = files.gguf_tensors()
    broken(write({**tensors, "blk.0.attn_q.bias": ("F32", (64,), b"\0" * 256)}), "attn_q.bias", kind=UsageError)
    broken(write({**tensors, "output_norm.weight": (16, (64,), b"\0" * 256)}), "IQ2_XXS", "Q4_1")
    broken(write({**tensors, "output_norm.weight": (999, (64,), b"\0" * 256)}), "type 999")
    broken(write({**tensors, "output_norm.weight": ("Q8_0", (63,), b"\0" * 256)}), "whole blocks")
    broken(write({**tensors, "output_norm.weight": ("F32", (1, 1, 1, 1, 64), b"\0" * 256)}), "5 dimensions")
    broken(write({**tensors, "output_norm.weight": ("F32", (0,), b"")}), "output_norm.weight")
    broken(write({**tensors, "rope_freqs.weight": ("F32", (3,), b"\0" * 12)}), "rope_freqs")
    del tensors["output_norm.weight"]
    broken(write(tensors), "lacks the tensor model.norm.weight")
    (tmp_path / "m.gguf").write_bytes(b"")
    broken(tmp_path / "m.gguf", "empty")


def test_folders_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    broken(files.folder(folder, architectures=["Qwen2ForCausalLM"]), "Qwen2ForCausalLM", "Llama", kind=UsageError)
    broken(files.folder(folder, architectures=None), "no named architecture", kind=UsageError)
    broken(files.folder(folder, hidden_act="gelu"), "gelu", kind=UsageError)
    broken(files.folder(folder, attention_bias=True), "biases", kind=UsageError)
    broken(files.folder(folder, quantization_config={"bits": 4}), "quantised", kind=UsageError)
    broken(files.folder(folder, hidden_size="wide"), "config.json", "hidden_size")
    broken(files.folder(folder, hidden_size=65), "embed_tokens")
    broken(files.folder(folder, num_hidden_layers=3), "lacks the tensor model.layers.2.")
    broken(files.folder(folder, tie_word_embeddings=False), "lacks the tensor lm_head.weight")
    (folder / "config.json").write_text("{")
    broken(folder, "config.json")
    files.folder(folder)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for size in (0, 5, 8, 100, 3000, len(whole) - 1):
        weights.write_bytes(whole[:size])
        broken(folder, "model.safetensors")
    weights.write_bytes(b"\xff" * 8 + whole[8:])
    broken(folder, "model.safetensors")
    weights.rename(folder / "pytorch_model.bin")
    broken(folder, "no safetensors", "save_pretrained")
    sharded = files.folder(tmp_path / "s", shards=2)
    (sharded / "model-00002-of-00002.safetensors").unlink()
    broken(sharded, "model-00002-of-00002")
    (sharded / "model.safetensors.index.json").write_text("[]")
    broken(sharded, "weight_map")


def test_extra_tensors(tmp_path: Path) -> None:
    folder = files.folder(tmp_path)
    tensors = {name: ("F32", matrix) for name, matrix in files.weights().items()}
    harmless = {**tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", np.ones(8))}
    files.safetensors(folder / "model.safetensors", harmless)
    same_as_written(load(folder))
    files.safetensors(
        folder / "model.safetensors", {**tensors, "model.layers.0.mlp.gate_proj.bias": ("F32", np.ones(96))}
    )
    broken(folder, "gate_proj.bias", kind=UsageError)


def test_a_sliding_window_bounds_the_context(tmp_path: Path) -> None:
    folder = files.folder(tmp_path, architectures=["MistralForCausalLM"], sliding_window=32)
    assert load(folder).shape.context == 32


def test_rope_in_a_folder(tmp_path: Path) -> None:
    assert load(files.folder(tmp_path, rope_scaling={"type": "linear", "factor": 4})).shape.rope_factors == (4.0,) * 8
    new = {"rope_type": "default", "rope_theta": 5e5}
    shape = load(files.folder(tmp_path, rope_theta=None, rope_parameters=new)).shape
    assert (shape.rope_theta, shape.rope_factors) == (5e5, ())
    with pytest.raises(UsageError, match=r"yarn.*Supported: none, linear, llama3"):
        load(files.folder(tmp_path, rope_scaling={"rope_type": "yarn", "factor": 4}))
    with pytest.raises(UsageError, match="low_freq_factor"):
        load(files.folder(tmp_path, rope_scaling={"rope_type": "llama3", "factor": 4}))
    broken(files.folder(tmp_path, rope_scaling={"rope_type": "linear", "factor": "many"}), "rope")


def test_rope_in_a_gguf(tmp_path: Path) -> None:
    tensors = files.gguf_tensors()
    metadata = {**files.header(), "llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}
    assert load(files.gguf(tmp_path / "a.gguf", metadata, tensors)).shape.rope_factors == (2.0,) * 8
    tensors["rope_freqs.weight"] = ("F32", (8,), np.arange(1, 9, dtype="<f4").tobytes())
    assert load(files.gguf(tmp_path / "b.gguf", files.header(), tensors)).shape.rope_factors == tuple(range(1, 9))
    metadata["llama.rope.scaling.type"] = "yarn"
    with pytest.raises(UsageError, match="yarn"):
        load(files.gguf(tmp_path / "c.gguf", metadata, files.gguf_tensors()))


def test_llama3_scaling_leaves_short_waves_and_slows_long_ones() -> None:
    factors = rope.llama3(5e5, 128, factor=8, low_freq_factor=1, high_freq_factor=4, original=8192)
    assert factors[0] == 1
    assert factors[-1] == 8
    assert list(factors) == sorted(factors)
    waves = [2 * np.pi * 5e5 ** (i / 64) for i in range(64)]
    assert all(factor == 1 for factor, wave in zip(factors, waves, strict=True) if wave < 8192 / 4)
    assert all(factor == 8 for factor, wave in zip(factors, waves, strict=True) if wave > 8192)


@pytest.mark.slow
def test_llama3_scaling_is_that_of_transformers() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    values = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config = transformers.LlamaConfig(
        hidden_size=4096, num_attention_heads=32, rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **values}
    )
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    ours = 5e5 ** (-np.arange(64) / 64) / np.array(rope.factors("llama3", 5e5, 128, values))
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5)


def test_a_tokenizer_larger_than_the_embedding(tmp_path: Path) -> None:
    metadata = files.header()
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "more"]
    checkpoint = load(files.gguf(tmp_path / "m.gguf", metadata, files.gguf_tensors()))
    with pytest.raises(BrokenModel, match="265 tokens"):
        checkpoint.tokens  # noqa: B018


def test_a_folder_may_hold_one_gguf(tmp_path: Path) -> None:
    files.gguf(tmp_path / "only.gguf", files.header(), files.gguf_tensors())
    same_as_written(load(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(files.config()))
    broken(tmp_path, "no safetensors")
