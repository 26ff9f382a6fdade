"""What may be imported without what: readers of shards and parsers of the graph stay light."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODELS = {"datasets", "math_verify", "safetensors", "tokenizers", "torch", "transformers", "vllm"}
LIBRARIES = {"numba", "numpy", "polars", "pyarrow", "pydantic"}
LIST_LOADED = "import json, sys; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"


def loaded_by(module: str) -> set[str]:
    """Top-level packages loaded in a fresh interpreter by importing one module."""
    done = subprocess.run(
        [sys.executable, "-c", f"import {module}; {LIST_LOADED}"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    "module",
    [
        "pipeline.cli",
        "pipeline.planning.config",
        "pipeline.execution.runner",
        "stages.config.training",
        "stages.models.identity",
        "stages.job",
        "stages.data.prompts",
    ],
)
def test_planning_needs_no_model_library(module: str) -> None:
    assert not MODELS & loaded_by(module)


@pytest.mark.parametrize(
    "module", [f"storage.{p.stem}" for p in sorted((ROOT / "storage").glob("[a-z]*.py"))]
)
def test_storage_needs_no_model_library_and_nothing_of_ours(module: str) -> None:
    loaded = loaded_by(module)
    assert not (MODELS | {"polars"}) & loaded
    assert not {"stages", "pipeline"} & loaded


@pytest.mark.parametrize("module", ["pipeline.command", "pipeline.graph"])
def test_what_schedulers_parse_needs_the_standard_library_only(module: str) -> None:
    assert not (MODELS | LIBRARIES | {"stages", "storage"}) & loaded_by(module)
