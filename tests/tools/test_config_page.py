"""docs/config.md is what the tables say."""

from pipeline.planning.config import RECIPE
from tools import config_page


def test_the_page_is_up_to_date() -> None:
    assert config_page.main(["--check"]) == 0, "run `python tools/config_page.py`"


def test_every_table_of_a_recipe_has_a_section() -> None:
    text = config_page.page()
    for name, field in RECIPE.model_fields.items():
        assert f"| `{field.alias or name}` |" in text
    assert "## `[train.objective" in text
    assert "## `[teacher-logits.record" in text


def test_run_tables_are_outside_the_key_and_other_fields_inside() -> None:
    rows = {line.split(" | ")[0]: line for line in config_page.page().splitlines()}
    assert " | yes | " in rows["| `learning_rate`"]
    assert " |  | " in rows["| `tokens_per_microbatch`"]
    assert " | content | " in rows["| `path`"]
