"""`sft`: base plus the teacher's answers gives pi_ref."""

from pathlib import Path

import pytest
import torch

from stages import sft
from stages.config.training import Sft
from stages.job import Input, Job
from stages.models.identity import described_tokenizer
from stages.models.model import load_model
from stages.training.metrics import read
from storage.errors import DataError
from storage.manifest import read_manifest
from tests.world import (
    LETTERS,
    World,
    commit,
    identity,
    make_job,
    rollouts,
    weights,
    write_model,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Input:
    """A base of another width than the teacher, without a chat template."""
    return Input(str(write_model(tmp_path_factory.mktemp("base"), 5, hidden_size=24)))


def job(base: Input, sequences: Input, store: Path, **settings: object) -> Job[Sft]:
    config = Sft.model_validate(
        {"steps": 20, "batch_size": 16, "learning_rate": 5e-3, "run": {"log_every": 5}, **settings}
    )
    return make_job(store, "sft", config, {"base": base, "sequences": sequences})


def test_the_student_learns_and_carries_the_teacher_on(
    world: World, base: Input, tmp_path: Path
) -> None:
    made = job(base, world.sequences, tmp_path)
    manifest = sft.run(made)
    losses = [float(line["loss"] or 0) for line in read(made.site / "metrics.jsonl")]
    assert losses[-1] < 0.8 * losses[0]
    assert manifest.teacher == identity(world.teacher).to_json()
    assert manifest.tokenizer == described_tokenizer(world.teacher)


def test_maximum_likelihood_is_not_held_against_a_drift_limit(
    world: World, base: Input, tmp_path: Path
) -> None:
    made = job(base, world.sequences, tmp_path, steps=1)
    sft.run(made)
    assert "drift_chi2" not in read(made.site / "metrics.jsonl")[0]


def test_the_student_gets_the_tokenizer_files_of_the_data(
    world: World, base: Input, tmp_path: Path
) -> None:
    """Same ids, but the teacher's chat template: the data was written with it."""
    rows = rollouts(load_model(world.teacher, "float32", "cpu"), 16)
    commit(
        tmp_path / "set", rows, key="dd" * 32, teacher=identity(world.teacher), words=world.teacher
    )
    template = tmp_path / "set" / "tokenizer" / "chat_template.jinja"
    template.write_text("{{ messages[0]['content'] }}!")
    made = job(base, Input(str(tmp_path / "set"), "dd" * 32), tmp_path / "store", steps=1)
    sft.run(made)
    assert (made.directory / "chat_template.jinja").read_bytes() == template.read_bytes()


def test_without_a_copy_in_the_data_the_bases_tokenizer_is_kept(
    world: World, base: Input, tmp_path: Path
) -> None:
    rows = rollouts(load_model(world.teacher, "float32", "cpu"), 16)
    commit(tmp_path / "set", rows, key="dd" * 32, teacher=identity(world.teacher))
    made = job(base, Input(str(tmp_path / "set"), "dd" * 32), tmp_path / "store", steps=1)
    sft.run(made)
    ours = (made.directory / "tokenizer_config.json").read_bytes()
    assert ours == (base.directory / "tokenizer_config.json").read_bytes()


def test_a_base_of_another_tokenizer_is_refused(world: World, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", 5, letters=LETTERS[::-1])
    with pytest.raises(DataError, match="token ids would not match"):
        sft.run(job(Input(str(other)), world.sequences, tmp_path / "store"))


def test_only_right_answers_are_read_when_asked(world: World, base: Input, tmp_path: Path) -> None:
    """One epoch over a third of 64 answers (`outcome` goes -1, 0, 1 in turn): 21 in two steps."""
    made = job(base, world.sequences, tmp_path, steps=None, epochs=1, keep="correct")
    manifest = sft.run(made)
    assert manifest.meta["steps"] == round(21 / 16)
    everything = job(base, world.sequences, tmp_path / "all", steps=None, epochs=1)
    assert sft.run(everything).meta["steps"] == 64 / 16


def test_the_base_sets_the_saved_type(world: World, base: Input, tmp_path: Path) -> None:
    made = job(Input(base.path, dtype="bfloat16"), world.sequences, tmp_path, steps=2)
    sft.run(made)
    assert {tensor.dtype for tensor in weights(made.site).values()} == {torch.bfloat16}


def test_the_manifest_is_left_to_the_runner(world: World, base: Input, tmp_path: Path) -> None:
    made = job(base, world.sequences, tmp_path, steps=1)
    sft.run(made)
    with pytest.raises(DataError, match="not a committed set"):
        read_manifest(made.directory)
