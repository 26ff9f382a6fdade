"""`pretrain`: a model from scratch on a corpus."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages import pretrain
from stages.config.training import Pretrain
from stages.job import Input, Job
from stages.models.model import load_model
from stages.training.metrics import read
from storage.errors import ConfigError
from tests.world import commit, make_job, rollouts, weights, write_model

SHAPE = {"hidden_size": 16, "layers": 1, "heads": 2, "max_positions": 32}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Input:
    root = tmp_path_factory.mktemp("corpus")
    writer = write_model(root / "writer", 1)
    rows = rollouts(load_model(writer, "float32", "cpu"), 96)
    commit(root / "set", rows, key="cc" * 32, words=writer)
    return Input(str(root / "set"), "cc" * 32)


def job(corpus: Input, store: Path, seed: int = 0, **settings: object) -> Job[Pretrain]:
    config = Pretrain.model_validate(
        {"architecture": SHAPE, "batch_size": 16, "learning_rate": 1e-2, **settings}
    )
    return make_job(store, "pretrain", config, {"corpus": corpus}, seed=seed)


def test_it_learns_and_leaves_a_hugging_face_model(corpus: Input, tmp_path: Path) -> None:
    made = job(corpus, tmp_path, epochs=10, run={"log_every": 10})
    manifest = pretrain.run(made)
    lines = read(made.site / "metrics.jsonl")
    assert manifest.meta["steps"] == lines[-1]["step"] == 60
    assert float(lines[-1]["loss"] or 0) < 0.9 * float(lines[0]["loss"] or 0)
    assert (manifest.kind, manifest.teacher) == ("model", None)
    assert manifest.meta["parameters"] == load_model(made.site, "float32", "cpu").num_parameters()
    listed = {file.path for file in manifest.files}
    assert listed == {path.name for path in made.directory.iterdir()}

    words = AutoTokenizer.from_pretrained(made.directory)
    model = AutoModelForCausalLM.from_pretrained(made.site)
    ids = words("ab", return_tensors="pt")["input_ids"]
    assert model(input_ids=ids).logits.shape == (1, 2, len(words))


def test_init_only_is_the_random_start(corpus: Input, tmp_path: Path) -> None:
    untrained = job(corpus, tmp_path / "a", init_only=True)
    manifest = pretrain.run(untrained)
    assert manifest.meta["steps"] == 0
    again = job(corpus, tmp_path / "b", init_only=True)
    trained = job(corpus, tmp_path / "c", steps=1)
    reseeded = job(corpus, tmp_path / "d", seed=1, init_only=True)
    for made in (again, trained, reseeded):
        pretrain.run(made)
    start = weights(untrained.site)["model.layers.0.mlp.up_proj.weight"]
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(weights(again.site)[name], start)
    assert 0 < (weights(trained.site)[name] - start).abs().max() < 0.02
    assert not torch.equal(weights(reseeded.site)[name], start)


def test_the_saved_type_is_the_configured_one(corpus: Input, tmp_path: Path) -> None:
    made = job(corpus, tmp_path, steps=2, dtype="bfloat16")
    pretrain.run(made)
    assert {tensor.dtype for tensor in weights(made.site).values()} == {torch.bfloat16}


def test_an_impossible_shape_is_refused(corpus: Input, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must divide heads"):
        pretrain.run(job(corpus, tmp_path, steps=1, architecture=SHAPE | {"kv_heads": 3}))
