"""What may import what: one direction, no circles, and readers and schedulers stay light."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools import house

ROOT = Path(__file__).resolve().parent.parent
MODELS = {"datasets", "math_verify", "safetensors", "tokenizers", "torch", "transformers", "vllm"}
LIBRARIES = {"numba", "numpy", "polars", "pyarrow", "pydantic"}
LIST_LOADED = "import json, sys; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"


def loaded_by(*modules: str) -> set[str]:
    """Top-level packages loaded in a fresh interpreter by importing these modules."""
    done = subprocess.run(
        [sys.executable, "-c", f"import {', '.join(modules)}; {LIST_LOADED}"],
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


def test_storage_needs_no_model_library_and_nothing_of_ours() -> None:
    loaded = loaded_by(*(name for name in house.modules() if name.startswith("storage")))
    assert not (MODELS | {"polars"}) & loaded
    assert not {"stages", "pipeline"} & loaded


@pytest.mark.parametrize("module", ["pipeline.command", "pipeline.graph"])
def test_what_schedulers_parse_needs_the_standard_library_only(module: str) -> None:
    assert not (MODELS | LIBRARIES | {"stages", "storage"}) & loaded_by(module)


@pytest.fixture(scope="module")
def graph() -> house.Graph:
    return house.import_graph()


def test_no_modules_import_each_other(graph: house.Graph) -> None:
    assert house.circle(graph) == []


def test_no_folders_import_each_other(graph: house.Graph) -> None:
    assert house.circle(house.folders(graph)) == []


def test_no_layer_imports_one_above_it_and_nothing_imports_a_stage(graph: house.Graph) -> None:
    assert house.upward(graph) == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"storage/a.py": "def f():\n    import storage.b", "storage/b.py": "import storage.a"},
         "circle"),
        ({"storage/a/x.py": "import storage.b", "storage/b.py": "import storage.a.y",
          "storage/a/y.py": ""}, "folders"),
        ({"storage/a.py": "from stages import job", "stages/job.py": ""}, "upward"),
        ({"stages/job.py": "from stages.train import run", "stages/train.py": ""}, "upward"),
        ({"dags/d.py": "import pipeline.cli", "pipeline/cli.py": ""}, "upward"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_found(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = house.import_graph(tmp_path)
    checks = {
        "circle": house.circle(found),
        "folders": house.circle(house.folders(found)),
        "upward": house.upward(found),
    }
    assert checks[message]


@pytest.mark.parametrize("package", [p for p in house.modules().values() if p.stem == "__init__"])
def test_a_package_lists_the_modules_it_has(package: Path) -> None:
    """A package that lists any of its modules in its docstring lists those that exist."""
    text = ast.get_docstring(ast.parse(package.read_text())) or ""
    listed = re.findall(r"^(?: {4}|- `)([a-z_]+)`?(?:\.py)?(?: {2,}|: )", text, re.MULTILINE)
    assert not [name for name in listed if not (package.parent / f"{name}.py").exists()]
