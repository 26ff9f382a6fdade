"""Loading, the head and the hidden states, on real architectures of toy size."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    HyperCLOVAXConfig,
    LlamaConfig,
    OPTConfig,
    PhiConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from stages.models.model import (
    Head,
    check_head,
    context_length,
    lm_head,
    load_model,
    load_tokenizer,
    pick_device,
    real_vocab_size,
    response_hidden,
)
from storage.errors import ConfigError, DataError, EngineError
from tests.stages.scoring.cases import CONTEXT, REAL, ROWS, SHAPE, load, write_teacher
from tests.world import random_model

TOY: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
GPT2 = GPT2Config(
    vocab_size=40, n_embd=32, n_layer=1, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0
)
OPT = OPTConfig(
    vocab_size=40,
    hidden_size=32,
    word_embed_proj_dim=16,
    ffn_dim=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    max_position_embeddings=64,
)
CONFIGS: dict[str, tuple[PretrainedConfig, float, float | None]] = {
    "llama": (LlamaConfig(**TOY), 1.0, None),
    "gemma2: softcap": (Gemma2Config(**TOY, head_dim=16, final_logit_softcapping=2.0), 1.0, 2.0),
    "cohere: multiplies": (CohereConfig(**TOY, logit_scale=0.25), 0.25, None),
    "granite: divides": (GraniteConfig(**TOY, logits_scaling=8.0), 0.125, None),
    "hyperclovax: multiplies": (HyperCLOVAXConfig(**TOY, logits_scaling=0.3), 0.3, None),
    "falcon-h1: multiplies": (FalconH1Config(**TOY, lm_head_multiplier=0.5), 0.5, None),
    "phi: bias": (PhiConfig(**TOY), 1.0, None),
    "gpt2": (GPT2, 1.0, None),
    "opt: projects before the head": (OPT, 1.0, None),
}


def some_model(config: PretrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def tokens(*pairs: tuple[list[int], list[int]]) -> Any:
    """A `Tokens` of (prompt, response) pairs."""
    prompts, responses = zip(*pairs, strict=True)
    return SimpleNamespace(
        seq_id=np.arange(len(pairs)) + 70,
        prompt=np.concatenate(prompts).astype(np.int64),
        prompt_off=np.cumsum([0, *map(len, prompts)]),
        tok=np.concatenate(responses).astype(np.int64),
        tok_off=np.cumsum([0, *map(len, responses)]),
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_head_times_hidden_states_are_the_models_logits(name: str) -> None:
    config, scale, softcap = CONFIGS[name]
    model = some_model(config)
    head = lm_head(model)
    assert head.scale == pytest.approx(scale)
    assert head.softcap == softcap
    assert (head.bias is not None) == ("bias" in name)
    check_head(model, head)
    prompt, response = [3, 5, 8], [13, 21, 34, 1]
    with torch.no_grad():
        logits_TV = head.logits(response_hidden(model, tokens((prompt, response))))
        expected = model(input_ids=torch.tensor([prompt + response])).logits[0, 2:-1]
    torch.testing.assert_close(logits_TV, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "name", ["gemma2: softcap", "cohere: multiplies", "granite: divides", "phi: bias"]
)
def test_a_head_that_misses_something_is_refused(name: str) -> None:
    model = some_model(CONFIGS[name][0])
    check_head(model.bfloat16(), lm_head(model).in_float32())
    with pytest.raises(EngineError, match="not those of its head"):
        check_head(model, Head(lm_head(model).weight))


def test_hidden_states_come_in_the_order_of_the_tokens_and_carry_gradients() -> None:
    model = some_model(CONFIGS["llama"][0])
    pairs = [([3, 5, 8, 2], [13]), ([7], [21, 34, 1, 6, 9]), ([4, 4], []), ([9, 1], [11, 12])]
    hidden_TD = response_hidden(model, tokens(*pairs))
    expected: list[torch.Tensor] = []
    for prompt, response in pairs:
        ids = torch.tensor([prompt + response])
        expected.append(model.base_model(ids).last_hidden_state[0, len(prompt) - 1 : -1])
    torch.testing.assert_close(hidden_TD, torch.cat(expected), atol=1e-5, rtol=1e-5)
    hidden_TD.sum().backward()
    assert all(p.grad is not None for p in model.base_model.parameters())


def test_a_sequence_without_a_prompt_is_refused_by_name() -> None:
    model = some_model(CONFIGS["llama"][0])
    with pytest.raises(DataError, match="sequence 71 has an empty prompt"):
        response_hidden(model, tokens(([1], [2]), ([], [3, 4])))


def test_logits_are_float32_whatever_the_weights() -> None:
    model = some_model(CONFIGS["phi: bias"][0]).bfloat16()
    hidden_RD = torch.randn(5, 32, dtype=torch.bfloat16)
    rounded, exact = lm_head(model), lm_head(model).in_float32()
    assert rounded.logits(hidden_RD).dtype == exact.logits(hidden_RD).dtype == torch.float32
    wide = hidden_RD.double() @ rounded.weight.double().T + rounded.bias.double()  # type: ignore[reportOptionalMemberAccess]
    torch.testing.assert_close(exact.logits(hidden_RD).double(), wide, atol=1e-5, rtol=1e-5)
    assert exact.weight.dtype == torch.float32
    assert not exact.weight.requires_grad


def test_loading_gives_an_evaluating_model_of_the_asked_type(tmp_path: Path) -> None:
    directory = write_teacher(tmp_path)
    model = load(directory, "bfloat16")
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert lm_head(model).weight.shape == (ROWS, 32)


def test_padding_rows_are_not_part_of_the_vocabulary(tmp_path: Path) -> None:
    directory = write_teacher(tmp_path)
    assert real_vocab_size(load(directory), load_tokenizer(directory)) == REAL < ROWS


def test_a_tokenizer_with_more_ids_than_the_head_does_not_widen_the_vocabulary(
    tmp_path: Path,
) -> None:
    directory = write_teacher(tmp_path, vocab_size=50)
    assert real_vocab_size(load(directory), load_tokenizer(directory)) == 50


@pytest.mark.parametrize("tied", [True, False])
def test_tied_heads_load_and_missing_weights_are_refused(tmp_path: Path, tied: bool) -> None:
    directory = write_teacher(tmp_path, tied=tied)
    load(directory)
    weights = load_file(directory / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match="1 weights are missing"):
        load(directory)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    directory = write_teacher(tmp_path)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"vocab_size": ROWS + 1}))
    with pytest.raises(DataError, match="2 weights are missing or of another shape"):
        load(directory)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    directory = write_teacher(tmp_path)
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(DataError, match="cannot be loaded"):
        load(directory)


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be loaded as a causal language model"):
        load_model(tmp_path, "float32", "cpu")


def test_context_length() -> None:
    assert context_length(random_model(0, **SHAPE)) == CONTEXT
    stretched = {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    config = LlamaConfig(**TOY, rope_parameters=stretched)
    assert context_length(some_model(config)) == 256
    assert context_length(some_model(GPT2)) == 64


def test_pick_device() -> None:
    assert pick_device("cpu").type == "cpu"
    if torch.cuda.is_available():
        assert pick_device("auto").type == pick_device("cuda").type == "cuda"
    else:
        assert pick_device("auto").type == "cpu"
        with pytest.raises(ConfigError, match="sees no GPU"):
            pick_device("cuda")
