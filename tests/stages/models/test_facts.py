"""What the files of a model say, read with and without transformers."""

import json
from pathlib import Path

import pytest

from stages.models.facts import model_facts, model_outline
from storage.errors import DataError
from tests.world import write_model


def test_the_outline_says_what_the_facts_say(tmp_path: Path) -> None:
    model = write_model(tmp_path, context=32)
    facts, outline = model_facts(model), model_outline(model)
    assert (outline.rows, outline.context, outline.ends) == (facts.rows, 32, facts.stop_ids)


@pytest.mark.parametrize("name", ["rope_parameters", "rope_scaling"])
def test_a_context_that_is_stretched_counts_in_full(tmp_path: Path, name: str) -> None:
    file = write_model(tmp_path, context=32) / "config.json"
    config = json.loads(file.read_text())
    config.pop("rope_parameters", None)
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    file.write_text(json.dumps(config | {name: yarn | {"rope_theta": 10000.0}}))
    assert model_outline(tmp_path).context == 128


def test_a_text_model_inside_of_another_is_looked_at(tmp_path: Path) -> None:
    text = {"vocab_size": 12, "max_position_embeddings": 64, "eos_token_id": [3, 4]}
    (tmp_path / "config.json").write_text(json.dumps({"text_config": text, "eos_token_id": 1}))
    outline = model_outline(tmp_path)
    assert (outline.rows, outline.context, outline.ends) == (12, 64, (3, 4))


def test_a_file_that_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "generation_config.json").write_text("[")
    with pytest.raises(DataError, match=r"generation_config.json: cannot be read"):
        model_outline(tmp_path)
