"""Shapes from files: parameters as torch counts them, without loading a weight."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from stages.config.training import Architecture
from stages.models.architecture import new_model
from stages.models.shape import shape_from_scratch, shape_of
from tests.world import random_model, tokenizer, write_model

SHAPE: dict[str, Any] = {"layers": 3, "hidden_size": 32, "heads": 4, "kv_heads": 2}


def numbers(model: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("weights", [True, False], ids=["headers", "config"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_parameters_are_those_of_the_model(
    family: Any, tied: bool, weights: bool, tmp_path: Path
) -> None:
    write_model(tmp_path, family=family, tied=tied, **SHAPE)
    if not weights:
        (tmp_path / "model.safetensors").unlink()
    shape = shape_of(tmp_path)
    assert shape is not None
    model = random_model(0, family=family, tied=tied, **SHAPE)
    assert (shape.parameters, shape.tied, shape.counted) == (numbers(model), tied, weights)
    assert (shape.layers, shape.queries, shape.keys, shape.context) == (3, 32, 16, 64)
    embeddings = 0 if tied else shape.rows * shape.hidden
    assert shape.multiplied == numbers(model) - embeddings


def test_a_model_from_scratch_has_the_size_that_its_table_says() -> None:
    architecture = Architecture(hidden_size=32, layers=2, heads=4, kv_heads=2)
    made = new_model(architecture, tokenizer(), 0, torch.device("cpu"))
    assert shape_from_scratch(architecture, len(tokenizer())).parameters == numbers(made)


@pytest.mark.parametrize("weights", [True, False], ids=["headers", "config"])
def test_a_token_visits_some_of_the_experts(weights: bool, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {
        "vocab_size": 32,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
    }
    config = Qwen3MoeConfig(**sizes)
    model = AutoModelForCausalLM.from_config(config)
    if weights:
        model.save_pretrained(tmp_path)
    else:
        config.save_pretrained(tmp_path)
    shape = shape_of(tmp_path)
    assert shape is not None
    assert (shape.parameters, shape.counted) == (numbers(model), weights)
    assert shape.idle == 2 * 6 * 3 * 16 * 24  # layers, idle experts, three matrices of 16 x 24


def test_the_language_model_of_a_vision_checkpoint_counts_alone(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    write_model(tmp_path, **SHAPE)
    alone = shape_of(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.visual.patch_embed.weight"] = torch.zeros(64, 64)
    save_file(tensors, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"text_config": config}))
    assert shape_of(tmp_path) == alone


def test_what_is_not_a_model_has_no_shape(tmp_path: Path) -> None:
    assert shape_of(tmp_path) is None
    (tmp_path / "config.json").write_text("{}")
    assert shape_of(tmp_path) is None
    write_model(tmp_path, **SHAPE)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    damaged = shape_of(tmp_path)
    assert damaged is not None
    assert not damaged.counted
