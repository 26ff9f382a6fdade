"""`prune`: a model with some layers of another is that model with the other layers skipped."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from pipeline.cli import main
from stages.models.model import load_model
from stages.models.prune import prune, prune_directory
from storage.errors import ConfigError
from tests.world import random_model, weights, write_model

IDS = torch.tensor([[2, 5, 3, 9, 7, 4]])


def skipping(model: PreTrainedModel, layers: list[int]) -> torch.Tensor:
    """Logits of `model` when the other layers hand on what they are given."""
    model = copy.deepcopy(model)
    base: Any = model.base_model
    base.layers = nn.ModuleList(base.layers[layer] for layer in layers)
    base.config.num_hidden_layers = len(layers)
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_kept_layers_compute_what_they_did(family: str, tied: bool) -> None:
    model = random_model(3, layers=5, tied=tied, family=family)  # type: ignore[arg-type]
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4)
    pruned = prune(model, [0, 2, 4])
    assert pruned.config.num_hidden_layers == 3
    assert pruned.config.tie_word_embeddings is tied
    with torch.no_grad():
        made = pruned(input_ids=IDS).logits  # with its key-value cache
    torch.testing.assert_close(made, skipping(model, [0, 2, 4]))
    assert not torch.allclose(made, model(input_ids=IDS).logits)


def test_lists_with_an_element_for_each_layer_keep_those_of_the_layers() -> None:
    config = GptOssConfig(
        vocab_size=12, hidden_size=16, intermediate_size=16, num_hidden_layers=4, head_dim=8,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=2, num_experts_per_tok=1,
        sliding_window=2,
        layer_types=["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
    )  # fmt: skip
    pruned = prune(GptOssForCausalLM(config), [1, 3])
    assert pruned.config.layer_types == ["full_attention", "sliding_attention"]


def test_a_layer_that_is_another_one_at_its_new_place_is_refused() -> None:
    config = Qwen3MoeConfig(
        vocab_size=12, hidden_size=16, intermediate_size=16, moe_intermediate_size=16,
        num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1,
        num_experts=2, num_experts_per_tok=1, decoder_sparse_step=2,
    )  # fmt: skip
    model = Qwen3MoeForCausalLM(config)
    with pytest.raises(ConfigError, match=r"layer 1: .* depends on the place of the layer"):
        prune(model, [1, 2])
    assert prune(model, [0, 1]).config.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("layers", "message"),
    [([0, 4], "layer 4: the model has 4 layers, 0 to 3"), ([2, 1], "ascending"), ([], "ascending")],
)
def test_layers_that_do_not_exist_are_refused(layers: list[int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prune(random_model(0, layers=4), layers)


def test_a_type_of_16_bits_stays(tmp_path: Path) -> None:
    random_model(0, layers=3).to(torch.bfloat16).save_pretrained(tmp_path)  # type: ignore[arg-type]
    assert prune_directory(tmp_path, [0]).dtype == torch.bfloat16


def test_the_command_writes_a_model_that_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = write_model(tmp_path / "teacher", layers=4, tied=True)
    into = tmp_path / "student"
    command = ["prune", str(teacher), "--layers", "0,2-3", "--into", str(into)]
    assert main(command) == 0
    made, source = weights(into), weights(teacher)
    assert torch.equal(
        made["model.layers.1.mlp.up_proj.weight"], source["model.layers.2.mlp.up_proj.weight"]
    )
    assert load_model(into, "float32", "cpu").config.num_hidden_layers == 3
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (into / name).read_bytes() == (teacher / name).read_bytes()
    assert main(command) == 2
    assert "exists already" in capsys.readouterr().err
