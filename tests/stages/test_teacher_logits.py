"""The stage: a committed set of sequences and a teacher in, a committed set of records out."""

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages import teacher_logits
from stages.config.records import TeacherLogits
from stages.job import Input, Job
from stages.models.identity import model_identity, tokenizer_hash
from stages.progress import Progress
from storage.codec import to_batch
from storage.errors import ConfigError, DataError, RetryError, SequenceError
from storage.manifest import (
    RANKS,
    Manifest,
    Part,
    SetIdentity,
    build_manifest,
    read_manifest,
    write_manifest,
)
from storage.rows import Rows
from storage.sets import verify_set
from storage.shard import read_meta, read_rows
from tests.stages.scoring.cases import (
    LETTERS,
    REAL,
    ROWS,
    load,
    log_probs,
    sequences,
    write_teacher,
)
from tests.storage.make import rows_of
from tests.world import commit, identity, make_job, run

KEY = "5e" * 32
SIZES = (40, 33, 7)
SPLITS = ("train", "train", "holdout")


def write_sequences(
    directory: Path,
    parts: Sequence[Rows],
    teacher: Path | None,
    *,
    candidates: int = 4,
    vocab_size: int = REAL,
) -> Manifest:
    """A committed set of sequences that descends from `teacher`."""
    known = identity(teacher) if teacher else None
    splits = {
        split: [part for part, name in zip(parts, SPLITS, strict=False) if name == split]
        for split in dict.fromkeys(SPLITS)
    }
    return commit(
        directory,
        splits,
        key=KEY,
        stage="rollouts",
        vocab_size=vocab_size,
        candidates=candidates,
        teacher=known,
        tokenizer={"tokenizer": known.tokenizer if known else "", "chat_template": ""},
        sampling=None,
        meta={"candidates": candidates, "vocab_size": vocab_size, "full_support": True},
    )


def job_of(root: Path, teacher: Path, source: Path, **config: Any) -> Job[TeacherLogits]:
    settings = {"record": {"tau": 0.05}, "run": {"tokens_per_batch": 64, "rows_per_chunk": 9}}
    table = TeacherLogits.model_validate(settings | config)
    inputs = {"teacher": Input(str(teacher)), "sequences": Input(str(source), KEY)}
    return make_job(root, "teacher-logits", table, inputs, seed=5)


def read_all(directory: Path, part: Part) -> Rows:
    return Rows.concat(list(read_rows(directory / part.file)))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def parts() -> list[Rows]:
    rows, edges = sequences(sum(SIZES)), np.cumsum([0, *SIZES])
    return [rows.slice(int(a), int(b)) for a, b in pairwise(edges)]


@pytest.fixture
def source(tmp_path: Path, teacher: Path, parts: list[Rows]) -> Path:
    write_sequences(tmp_path / "rollouts", parts, teacher)
    return tmp_path / "rollouts"


# ---------------------------------------------------------------------------------------------


def test_parts_map_one_to_one(
    tmp_path: Path, teacher: Path, source: Path, parts: list[Rows]
) -> None:
    job = job_of(tmp_path, teacher, source)
    specs = teacher_logits.plan(job)
    assert [(s.index, s.first, s.count, s.split) for s in specs] == [
        (0, 0, 40, "train"),
        (1, 40, 33, "train"),
        (2, 73, 7, "holdout"),
    ]
    manifest = run(job)
    assert [part.split for part in manifest.parts] == list(SPLITS)
    for part, rows in zip(manifest.parts, parts, strict=True):
        scored = read_all(job.site, part)
        for name in ("seq_id", "prompt_id", "sample", "finish", "outcome", "prompt", "tok"):
            np.testing.assert_array_equal(scored[name], rows[name], err_msg=name)
        np.testing.assert_allclose(scored["ref_lp"], rows["ref_lp"], rtol=2**-15)
        assert "cand" not in scored


@pytest.mark.parametrize(("limit", "counts"), [(50, [40, 10, 7]), (37, [37, 7]), (999, [*SIZES])])
def test_a_limit_scores_the_first_sequences_and_all_held_out(
    tmp_path: Path, teacher: Path, source: Path, limit: int, counts: list[int]
) -> None:
    jobs = [
        job_of(tmp_path / str(index), teacher, source, **options)
        for index, options in enumerate(({}, {"limit": limit}))
    ]
    whole, some = (run(job) for job in jobs)
    assert [part.sequences for part in some.parts] == counts
    for split in ("train", "holdout"):
        every, first = (
            Rows.concat([read_all(job.site, p) for p in made.parts if p.split == split])
            for job, made in zip(jobs, (whole, some), strict=True)
        )
        for name, values in every.slice(0, len(first)).columns.items():
            np.testing.assert_allclose(first[name], values, rtol=2e-3, err_msg=name)


def test_stored_log_p_is_within_a_thousandth_of_a_plain_forward(
    tmp_path: Path, teacher: Path, source: Path, parts: list[Rows]
) -> None:
    job = job_of(tmp_path, teacher, source)
    manifest = run(job)
    model = load(teacher)
    meta = read_meta(job.directory / manifest.parts[1].file)
    scored = read_all(job.site, manifest.parts[1])
    log_p_TV = log_probs(model, parts[1])
    expected_T = log_p_TV[np.arange(scored.tokens), parts[1]["tok"]]
    assert np.abs(scored["lp"] - expected_T).max() < 1e-3
    batch = to_batch(scored, meta)
    row_E = np.repeat(np.arange(batch.tokens), np.diff(batch.entry_off))
    totals_T = np.bincount(row_E, batch.weight, minlength=batch.tokens)
    np.testing.assert_allclose(totals_T, 1, atol=1e-5)
    exact = batch.exact
    np.testing.assert_allclose(
        batch.logp[exact], log_p_TV[row_E[exact], batch.ids[exact]], rtol=1e-3, atol=1e-3
    )


def test_unscorable_sequences_are_skipped_when_asked(
    tmp_path: Path, teacher: Path, parts: list[Rows]
) -> None:
    """Sequences with an id from the padding of the vocabulary, which pi_ref should not have had."""
    bad = {3, 4, 39}
    marked: list[Rows] = []
    for part in parts[:2]:
        tok = part["tok"].copy()
        for row in bad & set(range(len(part))):
            tok[part.offsets["position"][row] :][:1] = REAL
        marked.append(Rows.from_columns(part.columns | {"tok": tok}, part.offsets))
    marked.append(parts[2])
    source = tmp_path / "rollouts"
    write_sequences(source, marked, teacher, vocab_size=ROWS)
    options: dict[str, Any] = {"record": {"entries": 4.0, "candidates": 0}}
    with pytest.raises(SequenceError, match=r'sequence \d+: id .*on_bad_sequence = "skip"'):
        run(job_of(tmp_path / "stop", teacher, source, **options))
    options |= {"on_bad_sequence": "skip"}
    with pytest.raises(SequenceError, match=r"lets at most 0 be skipped"):
        run(job_of(tmp_path / "few", teacher, source, **options))
    with pytest.raises(DataError, match=r"5 of 80 sequences .* lets at most 4 be skipped"):
        run(job_of(tmp_path / "fewer", teacher, source, **options, max_bad_share=0.05))
    job = job_of(tmp_path, teacher, source, **options, max_bad_share=0.1)
    manifest = run(job)
    assert manifest.meta["skipped"] == 5
    for part, rows in zip(manifest.parts, marked, strict=True):
        dropped = bad if len(rows) > 7 else set()
        expected = rows.take([row for row in range(len(rows)) if row not in dropped])
        found = read_all(job.site, part)
        np.testing.assert_array_equal(found["seq_id"], expected["seq_id"])
        np.testing.assert_array_equal(found["tok"], expected["tok"])


def test_the_manifest_says_who_scored_and_what_was_kept(
    tmp_path: Path, teacher: Path, source: Path
) -> None:
    job = job_of(tmp_path, teacher, source)
    manifest = run(job)
    identity = model_identity(teacher, "float32").to_json()
    assert manifest.kind == "records"
    assert manifest.teacher == identity
    assert manifest.tokenizer is not None
    assert manifest.tokenizer["tokenizer"] == identity["tokenizer"]
    assert manifest.meta == {
        "candidates": 4,
        "full_support": True,
        "vocab_size": REAL,
        "record": job.config.record.described(),
    }
    meta = read_meta(job.directory / manifest.parts[0].file)
    assert (meta.record, meta.candidates, meta.vocab_size) == (manifest.meta["record"], 4, REAL)
    # Byte for byte what footers said before manifests told what a tokenizer does.
    named = ("path", "files", "weights", "tokenizer", "chat_template", "dtype")
    assert meta.teacher == {name: identity[name] for name in named}
    copied = {file.path for file in manifest.files}
    assert "tokenizer/tokenizer.json" in copied
    assert tokenizer_hash(job.directory / "tokenizer") == identity["tokenizer"]
    json.dumps(manifest.to_json())


@pytest.mark.parametrize(
    "record",
    [
        {"kind": "sampled"},
        {"kind": "counts", "draws": 12},
        {"kind": "counts", "draws": 12, "sampler": "multinomial"},
        {"kind": "head_tail", "candidates": 0, "temperature": 0.7},
    ],
    ids=["sampled", "systematic", "multinomial", "head_tail"],
)
def test_every_kind_is_written_and_read(
    tmp_path: Path, teacher: Path, source: Path, parts: list[Rows], record: dict[str, Any]
) -> None:
    job = job_of(tmp_path, teacher, source, record=record)
    manifest = run(job)
    scored = read_all(job.site, manifest.parts[2])
    temperature = record.get("temperature", 1.0)
    log_p_TV = log_probs(load(teacher), parts[2], temperature)
    expected_T = log_p_TV[np.arange(scored.tokens), parts[2]["tok"]]
    np.testing.assert_allclose(scored["lp"], expected_T, atol=1e-3)
    assert read_meta(job.directory / manifest.parts[2].file).record_params["kind"] == record["kind"]


@pytest.mark.parametrize("kind", ["counts", "head_tail", "top_k"])
def test_packed_records_are_the_same_records(
    tmp_path: Path, teacher: Path, source: Path, parts: list[Rows], kind: str
) -> None:
    record = {"kind": kind} | ({} if kind == "top_k" else {"copies": 2, "logp": True})
    jobs = {
        layout: job_of(tmp_path / layout, teacher, source, layout=layout, record=record)
        for layout in ("open", "packed")
    }
    plain, small = (run(job) for job in jobs.values())
    for one, other in zip(plain.parts, small.parts, strict=True):
        assert one.row_groups == other.row_groups
        assert read_meta(jobs["packed"].directory / other.file).layout == "packed"
    assert verify_set(jobs["packed"].directory) == []
    ranks = np.fromfile(jobs["packed"].site / RANKS, "<u4")
    count_V = np.bincount(np.concatenate([rows["tok"] for rows in parts]), minlength=REAL)
    assert (np.diff(count_V[ranks]) <= 0).all()
    assert set(ranks) == set(np.flatnonzero(count_V))


def test_what_has_no_entries_is_never_packed(tmp_path: Path, teacher: Path, source: Path) -> None:
    job = job_of(tmp_path, teacher, source, layout="packed", record={"kind": "sampled"})
    (part, *_) = run(job).parts
    assert read_meta(job.directory / part.file).layout == "open"
    assert job.config.unused() > TeacherLogits().unused()


def test_a_second_run_gives_the_same_bytes(tmp_path: Path, teacher: Path, source: Path) -> None:
    """Names of parts are digests: equal names are equal bytes."""
    job = job_of(tmp_path / "a", teacher, source)
    names = [part.file for part in run(job).parts]
    again = job_of(tmp_path / "b", teacher, source)
    assert [part.file for part in run(again).parts] == names


def test_execution_options_leave_the_records_alone(
    tmp_path: Path, teacher: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = job_of(tmp_path / "a", teacher, source)
    two = job_of(
        tmp_path / "b", teacher, source, run={"tokens_per_batch": 7, "rows_per_chunk": 1000}
    )
    expected = run(one)
    monkeypatch.setattr(teacher_logits, "_BATCHES", 1)
    found = run(two)
    for before, after in zip(expected.parts, found.parts, strict=True):
        rows, other = read_all(one.site, before), read_all(two.site, after)
        for name in ("seq_id", "nu", "nh", "ids"):
            np.testing.assert_array_equal(rows[name], other[name], err_msg=name)
        np.testing.assert_allclose(rows["lp"], other["lp"], rtol=1e-4, atol=1e-5)


def test_missing_parts_stop_the_commit_and_are_made_up_for(
    tmp_path: Path, teacher: Path, source: Path
) -> None:
    job = job_of(tmp_path, teacher, source)
    specs = teacher_logits.plan(job)
    with teacher_logits.open_engine(job) as engine:
        done = teacher_logits.run_shard(job, specs[1], engine)
    with pytest.raises(RetryError, match="parts 0, 2 of 3"):
        teacher_logits.commit(job)
    assert run(job).parts[1] == done


def test_a_corpus_is_scored_without_candidates_and_reference(tmp_path: Path, teacher: Path) -> None:
    rows = sequences(10, candidates=0, reference=False)
    write_sequences(tmp_path / "corpus", [rows], None, candidates=0)
    # a corpus descends from no teacher, but keeps the tokenizer it was made with
    tokenizer = tmp_path / "corpus" / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_bytes((teacher / "tokenizer.json").read_bytes())
    job = job_of(tmp_path, teacher, tmp_path / "corpus", record={"candidates": 0})
    manifest = run(job)
    scored = read_all(job.site, manifest.parts[0])
    assert "ref_lp" not in scored
    assert len(scored) == 10


def test_every_forward_pass_counts(
    tmp_path: Path, teacher: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The share done is of the whole set, not of one part."""
    job = job_of(tmp_path, teacher, source, run={"tokens_per_batch": 64})
    specs = teacher_logits.plan(job)
    total = sum(spec.count for spec in specs)
    counted: list[float] = []
    with teacher_logits.open_engine(job) as engine, Progress("scoring", total) as progress:
        advance = progress.advance

        def count(amount: float = 1.0, tokens: int = 0) -> None:
            counted.append(amount)
            advance(amount, tokens)

        progress.advance = count
        for spec in specs:
            teacher_logits.run_shard(job, spec, engine)
        assert progress.own == pytest.approx(total)
    assert len(counted) > 2 * len(specs)
    with caplog.at_level(logging.INFO, "stages.progress"):
        manifest = run(job_of(tmp_path / "other", teacher, source))
    (line,) = [one for one in caplog.messages if one.startswith(f"{job.name}: {total} sequences")]
    assert line.endswith("tokens/s")
    assert sum(part.sequences for part in manifest.parts) == total


# ---------------------------------------------------------------------------------------------
# What is refused


def open_and_close(job: Job[TeacherLogits]) -> None:
    with teacher_logits.open_engine(job):
        pass


def test_another_teacher_is_refused(
    tmp_path: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = write_teacher(tmp_path / "other", seed=1)
    with pytest.raises(DataError, match=r"differing: model.safetensors"):
        open_and_close(job_of(tmp_path, other, source))
    job = job_of(tmp_path, other, source, consistency="warn")
    manifest = run(job)
    assert "differing: model.safetensors" in caplog.text
    assert manifest.teacher == model_identity(other, "float32").to_json()


def test_another_chat_template_is_refused_and_another_dtype_is_said(
    tmp_path: Path, teacher: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = job_of(tmp_path, teacher, source)
    half = replace(job.inputs["teacher"], dtype="bfloat16")
    open_and_close(replace(job, inputs={**job.inputs, "teacher": half}))
    assert "its teacher ran in float32, the teacher in use runs in bfloat16" in caplog.text
    other = Path(shutil.copytree(teacher, tmp_path / "other"))
    (other / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    with pytest.raises(DataError, match=r"differing: chat template"):
        open_and_close(job_of(tmp_path, other, source))


def test_another_tokenizer_is_refused_even_under_warn(tmp_path: Path, source: Path) -> None:
    other = write_teacher(tmp_path / "other", letters=LETTERS[::-1])
    with pytest.raises(DataError, match="token ids would not match"):
        open_and_close(job_of(tmp_path, other, source, consistency="warn"))


def test_a_smaller_vocabulary_is_refused(tmp_path: Path, teacher: Path, parts: list[Rows]) -> None:
    vocab_size = REAL - 1
    rows = parts[2]
    columns = {name: np.minimum(rows[name], REAL - 2) for name in ("prompt", "tok", "cand")}
    small = Rows(rows.columns | columns, rows.offsets)
    write_sequences(tmp_path / "set", [small], teacher, vocab_size=vocab_size)
    with pytest.raises(DataError, match=f"its vocabulary has {vocab_size} ids, the teacher's 90"):
        open_and_close(job_of(tmp_path, teacher, tmp_path / "set"))


def test_a_vocabulary_that_differs_by_padding_is_fine(
    tmp_path: Path, teacher: Path, parts: list[Rows]
) -> None:
    write_sequences(tmp_path / "set", parts[:1], teacher, vocab_size=ROWS)
    manifest = run(job_of(tmp_path, teacher, tmp_path / "set"))
    assert manifest.meta["vocab_size"] == REAL


def test_candidates_the_teacher_lacks_give_way_to_others(
    tmp_path: Path, teacher: Path, parts: list[Rows]
) -> None:
    """Of a student whose tokenizer has added tokens; the realised tokens are all the teacher's."""
    rows = parts[2]
    cand_TC = rows["cand"].reshape(rows.tokens, -1).copy()
    cand_TC[:, 1], cand_TC[::2, 2] = ROWS, ROWS + 1
    altered = Rows(rows.columns | {"cand": cand_TC.ravel()}, rows.offsets)
    write_sequences(tmp_path / "set", [altered], teacher, vocab_size=ROWS + 2)
    job = job_of(tmp_path, teacher, tmp_path / "set")
    manifest = run(job)
    assert manifest.meta["vocab_size"] == REAL
    assert verify_set(job.directory) == []
    heads = rows_of(job.directory)
    start = 0
    for cand_C, nh, nu in zip(cand_TC, heads["nh"].tolist(), heads["nu"].tolist(), strict=True):
        kept = set(cand_C[cand_C < REAL].tolist())
        head = set(heads["ids"][start : start + nh].tolist())
        assert kept <= head
        assert len(head) >= cand_TC.shape[1]
        start += nu


def test_more_candidates_than_the_set_keeps_are_refused(
    tmp_path: Path, teacher: Path, source: Path
) -> None:
    job = job_of(tmp_path, teacher, source, record={"candidates": 5})
    with pytest.raises(ConfigError, match=r"record.candidates is 5, but .* keep 4"):
        teacher_logits.plan(job)
    other_kind = job_of(tmp_path, teacher, source, record={"kind": "counts"})
    assert len(teacher_logits.plan(other_kind)) == 3


def test_a_directory_without_a_manifest_is_refused(
    tmp_path: Path, teacher: Path, source: Path
) -> None:
    (source / "manifest.json").unlink()
    with pytest.raises(DataError, match="not a committed set"):
        teacher_logits.plan(job_of(tmp_path, teacher, source))


def test_a_set_of_another_kind_is_refused(tmp_path: Path, teacher: Path) -> None:
    manifest = build_manifest(tmp_path, SetIdentity("sft", 1, KEY, "sft", "model", {}))
    write_manifest(tmp_path, manifest)
    with pytest.raises(DataError, match="holds model, not sequences"):
        teacher_logits.plan(job_of(tmp_path, teacher, tmp_path))


def test_a_too_long_sequence_is_named_and_nothing_is_left_behind(
    tmp_path: Path, teacher: Path
) -> None:
    item = sequences(1).sequence(0) | {"seq_id": 99, "prompt": np.zeros(40, np.uint32)}
    write_sequences(tmp_path / "set", [Rows.from_sequences([item])], teacher)
    job = job_of(tmp_path, teacher, tmp_path / "set")
    with (
        teacher_logits.open_engine(job) as engine,
        pytest.raises(DataError, match="sequence 99 has"),
    ):
        teacher_logits.run_shard(job, teacher_logits.plan(job)[0], engine)
    assert list(job.directory.iterdir()) == []


def test_a_damaged_source_is_refused(tmp_path: Path, teacher: Path, source: Path) -> None:
    job = job_of(tmp_path, teacher, source)
    path = source / read_manifest(source).parts[0].file
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0x10
    path.write_bytes(data)
    with (
        teacher_logits.open_engine(job) as engine,
        pytest.raises(DataError, match="damaged"),
    ):
        teacher_logits.run_shard(job, teacher_logits.plan(job)[0], engine)


def test_a_part_of_another_key_is_found_out(tmp_path: Path, teacher: Path, source: Path) -> None:
    """Directories are named by twelve digits of the key; a clash must not go unnoticed."""
    job = job_of(tmp_path, teacher, source)
    run(job)
    (job.directory / "manifest.json").unlink()
    other = replace(job, key=job.key[:12] + "0" * 52)
    assert other.directory == job.directory
    with pytest.raises(DataError, match="belongs to set"):
        teacher_logits.commit(other)
