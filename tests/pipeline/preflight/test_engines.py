"""vLLM and models with a vision part, before anything is paid for."""

import importlib.util
from pathlib import Path

import pytest

from storage.errors import DataError
from tests.command import TINY, afterglow

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None or importlib.util.find_spec("torchvision") is not None,
    reason="needs vLLM without torchvision, as in the CPU environment",
)


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision-language checkpoint."""
    from tests.models.families import write_family

    return write_family("qwen3_5", tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    ("engine", "level", "code"),
    [("auto", "note", 0), ("vllm", "refused", DataError.exit_code), ("transformers", None, 0)],
)
def test_a_vision_class_that_vllm_cannot_import(
    vision: Path, tmp_path: Path, engine: str, level: str | None, code: int
) -> None:
    settings = (f"teacher.path={vision}", f"student.path={vision}", f"rollouts.run.engine={engine}")
    options = [word for one in settings for word in ("--set", one)]
    outcome = afterglow(
        "check", "rollouts", *TINY, *options, "--set", "sft-data.run.engine=transformers",
        store=tmp_path / "store",
    )  # fmt: skip
    assert outcome.code == code, outcome.err
    said = [one for one in outcome.result["findings"] if "torchvision" in one["message"]]
    found = {one["message"].split(":")[0]: (one["level"], one["subject"]) for one in said}
    assert found.get("rollouts") == ((level, str(vision)) if level else None)
