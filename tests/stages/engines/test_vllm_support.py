"""What vLLM cannot run here: found out before it starts, said, and done by transformers instead."""

import importlib.util
import json
import logging
from pathlib import Path

import pytest
import torch
from transformers import Olmo2Model

from stages.config.generation import EngineRun, Rollouts
from stages.config.records import ScoreRun
from stages.engines.open import open_generator
from stages.engines.vllm_process import _class_restored
from stages.engines.vllm_support import text_only, why_unsupported
from stages.job import Input
from stages.models.model import load_model
from stages.scoring.scorer import open_scorer
from storage.errors import EngineError
from tests.conftest import EngineSlot
from tests.models.families import CONTEXT, write_family
from tests.storage.make import rows_of
from tests.world import make_job, run

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]
without_torchvision = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is not None,
    reason="torchvision is installed, so vLLM can import the class",
)
WHY = r"vLLM cannot run Qwen3_5For\w+ in this environment: No module named 'torchvision' \(vLLM im"


@pytest.fixture(scope="module")
def qwen3_5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family("qwen3_5", tmp_path_factory.mktemp("model"))


@without_torchvision
def test_auto_generates_with_transformers_and_says_why(
    qwen3_5: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By the stage and its defaults, as a recipe that names no engine runs it."""
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "ab"}\n{"prompt": "cde"}\n')
    config = Rollouts.model_validate(
        {
            "prompts": {"path": str(tmp_path / "prompts.jsonl")},
            "sampling": {"max_tokens": 4},
            "holdout": 0.0,
        }
    )
    job = make_job(tmp_path / "store", "rollouts", config, {"model": Input(str(qwen3_5))})
    with caplog.at_level(logging.WARNING):
        run(job)
    assert len(rows_of(job.directory)) == 2
    said = [record.message for record in caplog.records if "cannot run" in record.message]
    assert len(said) == 1
    assert "No module named 'torchvision'" in said[0]
    assert "Transformers generates instead" in said[0]


@without_torchvision
def test_vllm_by_name_is_an_error_with_the_true_cause(qwen3_5: Path, vllm_slot: EngineSlot) -> None:
    vllm_slot.close()
    run_with = EngineRun(engine="vllm")
    with (
        pytest.raises(EngineError, match=WHY),
        open_generator(qwen3_5, dtype="float32", run=run_with, max_model_len=CONTEXT),
    ):
        raise AssertionError("the engine started")
    with (
        pytest.raises(EngineError, match=WHY),
        open_scorer(qwen3_5, "float32", ScoreRun(engine="vllm")),
    ):
        raise AssertionError("the engine started")


def test_what_vllm_knows_is_supported(tiny_model: Path, tmp_path: Path) -> None:
    assert why_unsupported(tiny_model) is None
    config = json.loads((tiny_model / "config.json").read_text())
    unknown = {**config, "architectures": ["SomethingNewForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(unknown))
    assert why_unsupported(tmp_path) is None  # vLLM may run it through transformers


def test_a_class_that_vllm_wraps_can_be_loaded_afterwards(tmp_path: Path) -> None:
    from vllm.compilation.decorators import support_torch_compile

    directory = write_family("olmo2", tmp_path)
    before = Olmo2Model.__init__
    with _class_restored(directory):
        support_torch_compile(dynamic_arg_dims={"input_ids": 0})(Olmo2Model)
        with pytest.raises(AssertionError, match="vLLM config is not set"):
            load_model(directory, "float32", "cpu")
    assert Olmo2Model.__init__ is before
    model = load_model(directory, "float32", "cpu")
    assert model(input_ids=torch.arange(2, 20)[None]).logits.isfinite().all()


def test_models_with_a_vision_part_are_served_as_text(qwen3_5: Path, tiny_model: Path) -> None:
    assert text_only(qwen3_5) == {"language_model_only": True}
    assert text_only(tiny_model) == {}
