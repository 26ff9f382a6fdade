"""Families with code of their own in the head, the layers or the checkpoint, through transformers.

`make test-models` takes all families through all stages, vLLM included.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from stages.config.data import Sampling
from stages.config.record_kinds import HeadTail
from stages.engines.base import Request
from stages.engines.transformers_engine import TransformersGenerator
from stages.losses.head_loss import head_loss
from stages.models.facts import ModelFacts, model_facts
from stages.models.model import check_head, lm_head, load_model, response_hidden
from stages.models.text_model import tensor_names
from stages.objectives.likelihood import CrossEntropy
from stages.objectives.tensors import TorchRecords
from stages.scoring.score import score_rows, scoring_head
from stages.training.output import write_model
from storage.batch import Batch
from storage.codec import to_batch
from storage.errors import DataError, EngineError
from storage.manifest import SetMeta
from storage.rows import Rows
from tests.models.families import CONTEXT, FAMILIES, VOCABULARY, write_family

HYBRID = ("qwen3_5", "granite_hybrid", "falcon_h1")
SPECIAL = (*HYBRID, "gemma3_vision", "gemma4", "granite", "gpt_oss", "qwen3_moe", "mistral")
LENGTHS = ((3, 40), (20, 5), (1, 1), (9, 17), (30, 30))
"""Of prompts and responses."""

Saved = Callable[[str], Path]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Directory of a family's model, written once."""
    root = tmp_path_factory.mktemp("families")

    def directory(name: str) -> Path:
        at = root / name
        return at if at.exists() else write_family(name, at)

    return directory


def sequences() -> Rows:
    rng = np.random.default_rng(0)
    return Rows.from_sequences(
        {
            "seq_id": index,
            "prompt_id": index,
            "sample": 0,
            "finish": 0,
            "outcome": 0,
            "prompt": rng.integers(2, VOCABULARY, prompt),
            "tok": rng.integers(2, VOCABULARY, response),
        }
        for index, (prompt, response) in enumerate(LENGTHS)
    )


def batch_of(rows: Rows) -> Batch:
    return to_batch(rows, SetMeta("sft-data", "00" * 32, "sequences", VOCABULARY))


def gradients(model: PreTrainedModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: grad.clone() for name, grad in found.items()}


def training_loss(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Summed cross-entropy, as a training step has it: padded, in the fused head and loss."""
    return head_loss(
        response_hidden(model, batch),
        lm_head(model),
        TorchRecords.from_batch(batch),
        CrossEntropy(),
        rows_per_chunk=16,
        normaliser=1.0,
    )[0]


def plain_loss(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """The same from the logits of the model itself, one sequence at a time, nothing padded."""
    losses: list[torch.Tensor] = []
    for index in range(len(batch)):
        one = batch.select([index])
        ids = torch.from_numpy(np.concatenate([one.prompt, one.tok]))
        logits = model(input_ids=ids[None], use_cache=False).logits[0, len(one.prompt) - 1 : -1]
        losses.append(
            torch.nn.functional.cross_entropy(logits, ids[len(one.prompt) :], reduction="sum")
        )
    return torch.stack(losses).sum()


@pytest.mark.parametrize("name", SPECIAL)
def test_a_padded_training_step_is_that_of_each_sequence_alone(saved: Saved, name: str) -> None:
    """Multipliers, softcaps, windows, states and experts: loss and every gradient."""
    model = load_model(saved(name), "float32", "cpu").train()
    batch = batch_of(sequences())
    padded, plain = training_loss(model, batch), plain_loss(model, batch)
    torch.testing.assert_close(padded, plain, rtol=1e-5, atol=1e-3)
    found, expected = gradients(model, padded), gradients(model, plain)
    assert found.keys() == expected.keys()
    for parameter, gradient in expected.items():
        off = float((found[parameter] - gradient).norm())
        assert off <= 2e-4 * float(gradient.norm()) + 1e-5, parameter


@pytest.mark.parametrize("name", SPECIAL)
def test_a_record_does_not_depend_on_what_is_scored_beside_it(saved: Saved, name: str) -> None:
    model = load_model(saved(name), "float32", "cpu")
    head, rows, record = scoring_head(model), sequences(), HeadTail(tau=0.05, candidates=0)

    def score(some: Rows) -> Rows:
        return score_rows(model, head, some, record, 3, vocab_size=VOCABULARY)

    together = score(rows)
    alone = Rows.concat([score(rows.slice(i, i + 1)) for i in range(len(rows))])
    np.testing.assert_allclose(together["lp"], alone["lp"], atol=1e-4)
    np.testing.assert_allclose(together["ent"], alone["ent"], atol=2e-3)  # float16
    expected = -float(plain_loss(model, batch_of(rows)).detach())
    assert float(together["lp"].sum()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", SPECIAL)
def test_the_head_is_understood_in_bfloat16(saved: Saved, name: str) -> None:
    model = load_model(saved(name), "bfloat16", "cpu")
    check_head(model, lm_head(model).in_float32())


@pytest.mark.parametrize("name", HYBRID)
def test_rows_that_end_early_leave_the_states_of_the_others_alone(saved: Saved, name: str) -> None:
    """Responses end at many lengths, so the batch and its cache are thinned out on the way."""
    model = load_model(saved(name), "float32", "cpu")
    facts = ModelFacts(VOCABULARY, VOCABULARY, CONTEXT, stop_ids=tuple(range(1, 7)))
    rng = np.random.default_rng(1)
    asked = [
        Request(index, rng.integers(2, VOCABULARY, length).astype(np.uint32), index + 7)
        for index, length in enumerate((3, 20, 1, 9, 30, 12, 5, 2))
    ]

    def draw(at_once: int) -> dict[int, Any]:
        engine = TransformersGenerator(model, facts, CONTEXT, at_once)
        return {made.seq_id: made for made in engine.generate(asked, Sampling(max_tokens=30))}

    together, alone = draw(8), draw(1)
    assert len({len(made.tok) for made in alone.values()}) > 3
    for seq_id, made in alone.items():
        np.testing.assert_array_equal(together[seq_id].tok, made.tok)
        np.testing.assert_allclose(together[seq_id].logprob, made.logprob, atol=1e-3)


# ---------------------------------------------------------------------------------------------
# Text models out of vision-language checkpoints


def add_tensors(directory: Path, **tensors: torch.Tensor) -> None:
    file = directory / "model.safetensors"
    save_file(load_file(file) | tensors, file, metadata={"format": "pt"})


def test_what_a_text_model_leaves_behind_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = write_family("qwen3_5", tmp_path / "model")
    add_tensors(directory, **{"mtp.fc.weight": torch.zeros(2, 2)})
    visual = sum("visual" in name for name in tensor_names(directory))
    model = load_model(directory, "float32", "cpu")
    assert f"no place for {visual} tensors of `model.visual` and 1 tensors of `mtp`" in caplog.text
    assert visual > 5

    (tmp_path / "student").mkdir()
    files = write_model(model, tmp_path / "student", directory, torch.float32, tmp_path / "work")
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    assert (config["architectures"], config["model_type"]) == (
        ["Qwen3_5ForCausalLM"],
        "qwen3_5_text",
    )
    assert "model.safetensors" in files
    caplog.clear()
    again = load_model(tmp_path / "student", "float32", "cpu")
    assert "no place for" not in caplog.text
    ids = torch.arange(2, 40)[None]
    torch.testing.assert_close(again(input_ids=ids).logits, model(input_ids=ids).logits)
    assert model_facts(tmp_path / "student") == model_facts(directory)


def test_a_vision_part_keeps_the_files_of_its_processor(tmp_path: Path, saved: Saved) -> None:
    directory = saved("gemma3_vision")
    (directory / "preprocessor_config.json").write_text('{"size": 16}')
    model = load_model(directory, "float32", "cpu")
    (tmp_path / "student").mkdir()
    files = write_model(model, tmp_path / "student", directory, torch.float32, tmp_path / "work")
    assert "preprocessor_config.json" in files
    assert (tmp_path / "student" / "preprocessor_config.json").read_text() == '{"size": 16}'


def test_a_head_tied_by_the_outer_configuration_alone_is_tied(tmp_path: Path) -> None:
    model = FAMILIES["qwen3_5"].model(FAMILIES["qwen3_5"].config())  # type: ignore[reportCallIssue]
    model.config.tie_word_embeddings = True
    model.save_pretrained(tmp_path)
    kept = load_file(tmp_path / "model.safetensors")
    del kept["lm_head.weight"]
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = load_model(tmp_path, "float32", "cpu")
    assert lm_head(loaded).weight is loaded.get_input_embeddings().weight
    assert loaded.config.tie_word_embeddings


# ---------------------------------------------------------------------------------------------
# Adapters


def test_an_adapter_beside_the_weights_is_refused(tmp_path: Path) -> None:
    directory = write_family("llama", tmp_path)
    (directory / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(DataError, match=r"adapter_config.json.*merge_and_unload"):
        load_model(directory, "float32", "cpu")


def test_a_head_with_an_adapter_around_it_is_refused(saved: Saved) -> None:
    """Its weight alone would be trained and scored, and the adapter ignored."""
    model = load_model(saved("llama"), "float32", "cpu")
    head: Any = model.get_output_embeddings()
    model.set_output_embeddings(WithAdapter(head))  # type: ignore[reportArgumentType]
    with pytest.raises(EngineError, match="WithAdapter"):
        lm_head(model)


class WithAdapter(torch.nn.Module):
    """A linear layer as PEFT wraps it."""

    def __init__(self, base_layer: torch.nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer

    @property
    def weight(self) -> torch.Tensor:
        """Of the layer inside."""
        return self.base_layer.weight
