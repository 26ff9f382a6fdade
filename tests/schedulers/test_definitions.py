"""What the files in `dags/` are made of; no scheduler is needed to see it."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.graph import BY_NAME
from tests.schedulers.environment import DAGS

SCHEDULERS = {"airflow_afterglow": "airflow", "dagster_afterglow": "dagster"}
FILES = sorted(DAGS.glob("*.py"))
OURS = {"pipeline.graph", "pipeline.command"}


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything a file imports, at whatever depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = str(node.module)
            inside = [f"{module}.{alias.name}" for alias in node.names]
            yield from inside if module == "pipeline" else [module]


def test_there_is_one_file_for_each_scheduler() -> None:
    assert [path.stem for path in FILES] == sorted(SCHEDULERS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_definitions_need_their_scheduler_and_the_graph_only(path: Path) -> None:
    names = set(imported(ast.parse(path.read_text())))
    others = {name for name in names if name.split(".")[0] not in sys.stdlib_module_names}
    assert {name.split(".")[0] for name in others - OURS} == {SCHEDULERS[path.stem]}
    assert others >= OURS


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_definitions_hold_no_stage_logic(path: Path) -> None:
    """A stage is named where the graph cannot say it: which one trains the students."""
    words = [n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)]
    named = [word for word in words if word in BY_NAME]
    assert named == (["train"] if path.stem == "airflow_afterglow" else [])
