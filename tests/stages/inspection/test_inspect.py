"""The page of a set: models are compared with its records, and its data can be read back."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.config.record_kinds import HeadTail
from stages.evaluation.positions import HeldOutValues
from stages.inspection.inspect import Settings, held_out_section, inspect_set
from stages.inspection.student import Student
from stages.models.descent import data_tokenizer
from stages.models.model import load_model
from storage.errors import DataError
from storage.manifest import read_manifest
from storage.stream import read_split
from tests.stages.inspection.test_pack import unpack
from tests.world import (
    World,
    commit,
    identity,
    make_world,
    rollouts,
    score,
    write_model,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), count=24)


def data(page: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    (found,) = re.findall(r'<script type="text/plain" id="inspector-data">([^<]*)</script>', page)
    return unpack(found)


def test_records_are_shown_with_models_before_and_after(world: World) -> None:
    models = {"before": world.reference, "after": world.teacher}
    page, figures = inspect_set(world.records.directory, models, Settings())
    assert (figures["sequences"], figures["shown"]) == (24, 24)
    meta, columns = data(page)
    assert meta["models"] == ["before", "after"]
    keys = [one["key"] for one in meta["quantities"]]
    assert keys[0] == "reverse_kl:after"  # the last model comes first
    # Pi_ref drew the tokens, so it has not drifted; the teacher is at no distance from itself.
    np.testing.assert_allclose(columns["drift:before"], 0.0, atol=2e-3)
    np.testing.assert_allclose(columns["reverse_kl:after"], 0.0, atol=2e-3)
    np.testing.assert_allclose(columns["gap:after"], 0.0, atol=2e-3)
    assert columns["reverse_kl:before"].max() > 0.1
    pieces = columns["pieces"].tobytes()
    words = [
        pieces[start:stop].decode()
        for start, stop in zip(columns["piece_off"], columns["piece_off"][1:], strict=False)
    ]
    batch = next(iter(read_split(world.records.directory, "train")))
    assert [words[i] for i in columns["tok"][: batch.tok_off[1]]] == [
        "<end>" if token == 1 else "abcdefghij"[token - 2]
        for token in batch.tok[: batch.tok_off[1]]
    ]
    likeliest = columns["top:before"].reshape(-1, meta["likeliest"])
    chances = columns["top_lp:before"].reshape(-1, meta["likeliest"])
    assert (np.diff(chances, axis=1) <= 0).all()
    assert likeliest.max() < len(words)


def test_sequences_without_a_teacher_are_shown(world: World) -> None:
    meta, _ = data(inspect_set(world.sequences.directory, {}, Settings())[0])
    assert [one["key"] for one in meta["quantities"]] == ["drawn"]
    assert not meta["records"]


def test_a_page_without_models_imports_no_torch(world: World) -> None:
    code = (
        "import sys; from pathlib import Path; "
        "from stages.inspection.inspect import Settings, inspect_set; "
        f"inspect_set(Path({str(world.records.directory)!r}), {{}}, Settings()); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_report_shows_held_out_records_with_the_values_that_evaluations_kept(
    world: World, tmp_path: Path
) -> None:
    record = HeadTail(tau=0.1, candidates=2)
    visited = rollouts(load_model(world.reference, "float32", "cpu"), 12, seed=5, candidates=2)
    rows = score(world.teacher, visited, record)
    splits = {"train": [rows.slice(0, 8)], "holdout": [rows.slice(8, 12)]}
    directory = tmp_path / "teacher-logits-1"
    about: dict[str, Any] = {"teacher": identity(world.teacher), "words": world.teacher}
    commit(directory, splits, key="cc" * 32, record=record, candidates=2, **about)
    manifest = read_manifest(directory)
    expected = data_tokenizer(directory, manifest)
    student = Student(world.reference, manifest.meta, expected, str(directory), tokens_per_batch=16)
    batch = next(iter(read_split(directory, "holdout")))
    assert batch.ref_lp is not None
    backwards = batch.select([3, 2, 1, 0])
    values = HeldOutValues(backwards.seq_id, backwards.tok_off, student(backwards))

    section = held_out_section(directory, {"sft": values, "x": values})
    assert section.assets
    meta, columns = data("".join(section.parts))
    assert meta["models"] == ["sft", "x"]
    assert columns["seq_id"].tolist() == [8, 9, 10, 11]
    np.testing.assert_allclose(columns["drift:x"], 0.0, atol=2e-3)  # it drew these tokens itself
    np.testing.assert_allclose(columns["drawn"], -batch.ref_lp, rtol=2e-3)
    assert held_out_section(world.records.directory, {}).parts == []  # nothing held out there


def test_a_model_with_another_tokenizer_is_refused(world: World, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", letters="klmnopqrst")
    with pytest.raises(DataError, match="tokenizer"):
        inspect_set(world.records.directory, {"x": other}, Settings())


def test_other_sets_are_refused(world: World) -> None:
    with pytest.raises(DataError, match="holds model, and the tokens that it was made from"):
        inspect_set(world.reference, {}, Settings())
    with pytest.raises(DataError, match="no sequence to show"):
        inspect_set(world.records.directory, {}, Settings(only=[10**6]))
