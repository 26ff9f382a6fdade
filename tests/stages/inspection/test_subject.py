"""What is shown of models and evaluations: the tokens they read, and what they say of them."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.cli import main
from stages.evaluation.positions import POSITIONS, HeldOutValues, PositionValues, write_positions
from stages.inspection.subject import subject
from storage.errors import DataError
from storage.manifest import ManifestKind, SetIdentity, build_manifest, write_manifest
from storage.rows import Rows
from storage.stream import read_split
from tests.stages.inspection.test_pack import unpack
from tests.storage.make import meta_of, sequence, write_parts
from tests.world import World, make_world, write_model

RECORDS, START, TRAINED, EVALUATED, REPORT = ("cd" * 32, "1a" * 32, "2b" * 32, "3c" * 32, "4d" * 32)


def describe(directory: Path, key: str, name: str, kind: ManifestKind, **inputs: str) -> Path:
    """Make a directory a committed set that was made from others."""
    payload = {"inputs": {role: {"key": source} for role, source in inputs.items()}}
    stage = directory.name.partition("-")[0]
    made = SetIdentity(stage, 1, key, name, kind, payload)
    names = sorted(str(path.relative_to(directory)) for path in directory.rglob("*.*"))
    write_manifest(directory, build_manifest(directory, made, files=names))
    return directory


def data(page: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    (found,) = re.findall(
        r'<script type="text/plain" id="inspector-data">([^<]*)</script>', page.read_text()
    )
    return unpack(found)


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    """Records, the last 10 of 40 sequences held out."""
    meta = meta_of("head_tail", vocab_size=50)
    rng = np.random.default_rng(0)
    rows = Rows.from_sequences([sequence(rng, meta, i) for i in range(40)])
    directory = tmp_path / f"teacher-logits-{RECORDS[:12]}"
    write_parts(directory, meta, [(rows.slice(0, 30), "train"), (rows.slice(30, 40), "holdout")])
    return directory


def test_a_model_is_shown_on_its_data_before_and_after_training(tmp_path: Path) -> None:
    world: World = make_world(tmp_path / "world", count=12)
    records = tmp_path / f"teacher-logits-{RECORDS[:12]}"
    (world.root / "records").rename(records)
    start = write_model(tmp_path / f"sft-{START[:12]}", 2)
    describe(start, START, "sft", "model")
    trained = write_model(tmp_path / f"train-{TRAINED[:12]}", 1)
    describe(trained, TRAINED, "train.reverse_kl", "model", init=START, data=RECORDS)
    page = tmp_path / "page.html"
    assert main(["inspect", str(trained), "--into", str(page)]) == 0
    meta, columns = data(page)
    assert meta["models"] == ["sft", "train.reverse_kl"]
    assert meta["quantities"][0]["key"] == "reverse_kl:train.reverse_kl"
    # It started as the policy that wrote these tokens, and ended as the teacher.
    np.testing.assert_allclose(columns["drift:sft"], 0.0, atol=2e-3)
    np.testing.assert_allclose(columns["gap:train.reverse_kl"], 0.0, atol=2e-3)
    assert main(["inspect", str(trained), "--model", str(start), "--into", str(page)]) == 0
    assert data(page)[0]["models"] == ["sft"]


def test_an_evaluation_is_shown_on_its_held_out_records_without_running_the_model(
    held_out: Path, tmp_path: Path
) -> None:
    batch = next(iter(read_split(held_out, "holdout")))
    values = PositionValues(
        logq_T=np.full(batch.tokens, -1.5, np.float32),
        entropy_T=np.ones(batch.tokens, np.float32),
        ids_TK=np.tile(np.arange(5), (batch.tokens, 1)),
        logq_TK=np.full((batch.tokens, 5), -2.0, np.float32),
    )
    evaluated = tmp_path / f"evaluate-{EVALUATED[:12]}"
    evaluated.mkdir()
    found = HeldOutValues(batch.seq_id, batch.tok_off, values)
    write_positions(evaluated / POSITIONS, found)
    (evaluated / "evaluation.json").write_text(json.dumps({"metrics": {}}))
    describe(evaluated, EVALUATED, "evaluate.reverse_kl", "metrics", records=RECORDS)
    page = tmp_path / "page.html"
    assert main(["inspect", str(evaluated), "--into", str(page), "--only", "0-34"]) == 0
    meta, columns = data(page)
    assert meta["models"] == ["reverse_kl"]
    assert columns["seq_id"].tolist() == [30, 31, 32, 33, 34]
    assert batch.ref_lp is not None
    kept = slice(0, batch.tok_off[5])
    np.testing.assert_allclose(
        columns["drift:reverse_kl"], -1.5 - batch.ref_lp[kept], rtol=2e-3, atol=2e-3
    )


def test_a_set_without_tokens_says_what_to_give(held_out: Path, tmp_path: Path) -> None:
    report = tmp_path / f"report-{REPORT[:12]}"
    report.mkdir()
    (report / "report.html").write_text("")
    describe(report, REPORT, "report", "metrics", sft=EVALUATED)
    with pytest.raises(DataError, match=r"a report is a page already\. Open .*report\.html"):
        subject(report, {})
    model = tmp_path / f"derive-{START[:12]}"
    model.mkdir()
    describe(model, START, "derive.student", "model", model=TRAINED)
    with pytest.raises(DataError, match="holds model, and the tokens that it was made from"):
        subject(model, {})
