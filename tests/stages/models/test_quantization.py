"""Quantised checkpoints and checkpoints of more than a text model, told from config.json."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from stages.models.model import load_model
from stages.models.quantization import other_parts, quantization, quantization_problem
from storage.errors import DataError
from tests.command import afterglow
from tests.world import write_model


def altered(directory: Path, **fields: Any) -> Path:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return directory


def test_the_method_is_found_also_below_a_text_config(tmp_path: Path) -> None:
    assert quantization(write_model(tmp_path)) is None
    settings = {"quant_method": "awq", "bits": 4}
    assert quantization(altered(tmp_path, quantization_config=settings)) == "awq"
    nested = {"quantization_config": None, "text_config": {"quantization_config": settings}}
    assert quantization(altered(tmp_path, **nested)) == "awq"


@pytest.mark.parametrize(
    ("method", "use", "expected"),
    [
        ("fp8", "transformers", None if find_spec("accelerate") else "needs accelerate"),
        ("fp8", "training", "cannot be trained"),
        ("gptq", "transformers", "needs optimum and gptqmodel"),
        ("bitsandbytes", "vllm", "vLLM does not run"),
    ],
)
def test_who_can_run_what(method: str, use: Any, expected: str | None) -> None:
    found = quantization_problem(method, use)
    assert (found is None) == (expected is None)
    assert found is None or expected in found[0]  # type: ignore[operator]


def test_a_quantised_teacher_is_refused_before_anything_is_generated(tmp_path: Path) -> None:
    teacher = write_model(tmp_path / "teacher", 1)
    altered(teacher, quantization_config={"quant_method": "gptq", "bits": 4})
    student = write_model(tmp_path / "student", 2)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "ab"}\n{"prompt": "ba"}\n')
    prompts = f'{{ path = "{tmp_path}/prompts.jsonl" }}'
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'[teacher]\npath = "{teacher}"\ndtype = "float32"\n'
        f'[student]\npath = "{student}"\ndtype = "float32"\n'
        f'[rollouts]\nprompts = {prompts}\nholdout = 0.5\nrun.engine = "transformers"\n'
        "[train]\nsteps = 1\n"
    )
    done = afterglow("run", "train", "--config", recipe, store=tmp_path / "store")
    assert done.code != 0
    assert "its weights are quantised (gptq)" in done.err
    assert "optimum and gptqmodel" in done.err
    assert "Traceback" not in done.err
    assert not list((tmp_path / "store").glob("rollouts-*"))


def test_loading_quantised_weights_fails_with_advice_that_applies(tmp_path: Path) -> None:
    directory = altered(
        write_model(tmp_path), quantization_config={"quant_method": "gptq", "bits": 4}
    )
    with pytest.raises(DataError, match=r"quantised \(gptq\): install what transformers asks"):
        load_model(directory, "float32", "cpu")


def test_parts_beside_a_text_model_are_named(tmp_path: Path) -> None:
    directory = write_model(tmp_path)
    assert other_parts(directory) == []
    altered(directory, vision_config={"depth": 2}, text_config={"mtp_num_hidden_layers": 1})
    assert other_parts(directory) == ["vision", "multi-token prediction"]
