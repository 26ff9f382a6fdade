"""The page of models shows the figures, and these are of all families."""

import json

from tests.models.families import FAMILIES
from tools import models_page as page


def test_the_page_shows_the_figures_of_every_family() -> None:
    figures = json.loads(page.FIGURES.read_text())
    assert list(figures["families"]) == list(FAMILIES)
    assert page.main(["--check"]) == 0


def test_what_vllm_cannot_run_is_told_with_its_reason() -> None:
    found = {
        "models": "Some 4",
        "special": "a vision part",
        "architecture": "SomeForConditionalGeneration",
        "saved_as": "SomeForCausalLM",
        "vllm": "no module",
        "rollouts": "transformers",
        "agreement": "1e-5",
        "scoring": None,
        "greedy": "",
    }
    shown = page.text({"versions": {"torch": "2"}, "families": {"some": found}})
    assert "| no, see below | transformers | 1e-5 | transformers alone | transformers al" in shown
    assert "- **Some 4**: no module." in shown
    assert "`SomeForConditionalGeneration` is saved as `SomeForCausalLM`" in shown
