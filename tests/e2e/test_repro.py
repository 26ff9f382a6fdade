"""Distillation on text from scratch: the packaged recipe, shrunk, through the command."""

from pathlib import Path

import pytest

from pipeline.planning.config import load_recipe
from pipeline.planning.document import BEGIN, END
from storage.errors import DataError
from storage.manifest import read_manifest
from storage.sets import verify_set
from tests.command import Outcome, afterglow

SMALL = {
    "corpus.text": '["{stdlib}/json"]',
    "corpus.sequence_length": "32",
    "corpus.tokenizer.vocab_size": "300",
    "pretrain.teacher": "{ epochs = 0.1, architecture = { hidden_size = 32, layers = 1 } }",
    "teacher-logits.limit": "64",
    "train.steps": "3",
    "train.architecture": "{ hidden_size = 16, layers = 1 }",
    "evaluate.gradient.batches": "1",
}
OVERRIDES = [part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")]
RECIPE = ("--recipe", "repro-rskd", *OVERRIDES)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("docs") / "page.md"
    path.write_text(f"# Page\n\n{BEGIN}\n{END}\n")
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("repro")


@pytest.fixture(scope="module")
def done(store: Path, page: Path) -> Outcome:
    outcome = afterglow("seeds", "--count", "1", "--into", page, *RECIPE, store=store)
    assert outcome.code == 0, outcome.err
    return outcome


def test_every_student_has_its_row_and_every_record_its_figures(done: Outcome) -> None:
    rows = {row["model"]: row for row in done.result["rows"]}
    students = list(load_recipe("repro-rskd").train.variants())
    assert list(rows) == ["teacher", *students]
    for name in students:
        assert rows[name]["text_loss"] > 0
        assert 0 < rows[name]["acceptance"] < 1
        reads = name not in ("cross_entropy", "full")
        assert ("record_bytes" in rows[name]) == reads
        assert ("gradient_angle" in rows[name]) == (name != "full")
    assert rows["teacher"]["acceptance"] == pytest.approx(1.0, abs=1e-4)
    assert rows["rs-kd"]["record_bytes"] > rows["systematic"]["record_bytes"]


def test_students_differ_in_what_they_read_alone(done: Outcome, store: Path) -> None:
    """The same sequences in the same parts and one teacher; each record set is its own."""
    sets = [path.parent for path in store.glob("*/manifest.json")]
    for directory in sets:
        assert verify_set(directory) == []
    scored = [read_manifest(path) for path in sets if path.name.startswith("teacher-logits-")]
    kinds = {str(manifest.meta["record"]["kind"]) for manifest in scored}
    assert (len(scored), kinds) == (4, {"head_tail", "top_k", "counts"})
    layout = [[part.sequences for part in manifest.parts] for manifest in scored]
    assert all(one == layout[0] == [64, layout[0][1]] for one in layout)
    students = [read_manifest(path) for path in sets if path.name.startswith("train-")]
    levels = {str(manifest.meta["guarantee"]["level"]) for manifest in students}
    assert levels >= {"exact", "unbiased", "biased"}
    assert len({str((m.teacher or {}).get("weights")) for m in [*scored, *students]}) == 1


def test_the_table_is_written_into_the_page(done: Outcome, page: Path) -> None:
    text = page.read_text()
    assert text.startswith(f"# Page\n\n{BEGIN}\n| model ")
    assert text.endswith(f"\n{END}\n")
    assert "| head-tail " in text
    assert " CPUs.\n" in text  # on which machine


def test_another_seed_shares_corpus_and_teacher(done: Outcome, store: Path) -> None:
    plan = afterglow("plan", *RECIPE, "--set", "seed=1", store=store)
    made = {node["node"].split(".")[0] for node in plan.result["nodes"] if node["done"]}
    assert made == {"corpus", "pretrain"}


def test_a_page_without_markers_is_refused_before_the_work(store: Path, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("# Page\n")
    outcome = afterglow("seeds", "--into", tmp_path / "page.md", *RECIPE, store=tmp_path / "new")
    assert outcome.code == DataError.exit_code
    assert "has no block to replace" in outcome.err
    assert not (tmp_path / "new").exists()
