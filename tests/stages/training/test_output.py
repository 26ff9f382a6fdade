"""The saved model: loadable, in the asked type, with the tokenizer files byte for byte."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from stages.config.training import Architecture
from stages.models.architecture import new_model
from stages.models.identity import tokenizer_hash
from stages.models.model import lm_head, load_model, load_tokenizer
from stages.training.output import write_model as write_output
from storage.errors import ConfigError
from tests.world import END, PAD, tokenizer, weights, write_model

CPU = torch.device("cpu")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = write_model(tmp_path / "source", 1)
    # Formatted as no tokenizer class would: a copy must not touch it.
    text = (directory / "tokenizer.json").read_text()
    (directory / "tokenizer.json").write_text(text.replace("\n", "").replace("  ", ""))
    (directory / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    return directory


def save(source: Path, target: Path, dtype: torch.dtype) -> list[str]:
    target.mkdir()
    model = load_model(source, "float32", "cpu")
    return write_output(model, target, source, dtype, target / ".work")


def test_the_directory_is_a_hugging_face_model(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "set"
    names = save(source, target, torch.float32)
    assert sorted(names) == sorted(path.name for path in target.iterdir() if path.is_file())
    model = AutoModelForCausalLM.from_pretrained(target)
    ids = AutoTokenizer.from_pretrained(target)("abc", return_tensors="pt")["input_ids"]
    expected = load_model(source, "float32", "cpu")
    torch.testing.assert_close(model(ids).logits, expected(ids).logits)


def test_weights_are_saved_in_the_asked_type(source: Path, tmp_path: Path) -> None:
    save(source, tmp_path / "set", torch.bfloat16)
    assert {tensor.dtype for tensor in weights(tmp_path / "set").values()} == {torch.bfloat16}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "set")
    assert model.dtype == torch.bfloat16


def test_tokenizer_files_are_copied_byte_for_byte(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "set"
    save(source, target, torch.float32)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (target / name).read_bytes() == (source / name).read_bytes()
    assert tokenizer_hash(target) == tokenizer_hash(source)


def test_generation_ends_at_the_tokenizers_and_the_old_models_end_tokens(
    source: Path, tmp_path: Path
) -> None:
    GenerationConfig(eos_token_id=[7, END], temperature=0.3, do_sample=True).save_pretrained(source)
    save(source, tmp_path / "set", torch.float32)
    saved = GenerationConfig.from_pretrained(tmp_path / "set")
    assert saved.eos_token_id == [END, 7]
    assert saved.pad_token_id == PAD
    assert saved.temperature in (None, 1.0)


def test_writing_again_after_a_kill_replaces_what_was_there(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "set"
    (target / ".work" / "model").mkdir(parents=True)
    (target / ".work" / "model" / "model.safetensors").write_bytes(b"half")
    (target / "model.safetensors").write_bytes(b"whole, of an earlier run")
    model = load_model(source, "float32", "cpu")
    write_output(model, target, source, torch.float32, target / ".work")
    assert load_model(target, "float32", "cpu").num_parameters() == model.num_parameters()


def test_initial_weights_are_as_wide_as_asked_for() -> None:
    shape = Architecture(hidden_size=64, layers=1, heads=2)
    for std in (shape.init_std, 0.125):
        model = new_model(shape.model_copy(update={"init_std": std}), tokenizer(), 0, CPU)
        weight = model.get_parameter("model.layers.0.mlp.up_proj.weight")
        assert weight.std().item() == pytest.approx(std, rel=0.05)


def test_a_new_model_has_the_shape_and_the_seed_asked_for(source: Path) -> None:
    words = load_tokenizer(source)
    shape = Architecture(hidden_size=16, layers=2, heads=4, kv_heads=2, max_positions=32)
    one, same, other = (new_model(shape, words, seed, CPU) for seed in (1, 1, 2))
    config = one.config
    assert (config.vocab_size, config.head_dim, config.intermediate_size) == (len(words), 4, 48)
    assert (config.eos_token_id, config.pad_token_id) == (END, PAD)
    assert one.get_input_embeddings().weight is lm_head(one).weight
    pairs = zip(one.parameters(), same.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    differing = zip(one.parameters(), other.parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in differing)


def test_making_a_model_leaves_the_random_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    new_model(Architecture(hidden_size=16, layers=1, heads=2), tokenizer(), 0, CPU)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    "shape", [{"hidden_size": 10, "heads": 4}, {"hidden_size": 12, "heads": 4}, {"kv_heads": 3}]
)
def test_impossible_shapes_are_refused(shape: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="hidden_size"):
        new_model(Architecture.model_validate(shape), tokenizer(), 0, CPU)
