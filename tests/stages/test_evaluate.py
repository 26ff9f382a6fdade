"""The evaluate stage on real tiny models: generation, verification, figures, resumption."""

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from stages import evaluate
from stages.config.candidates import Candidates
from stages.config.data import Sampling
from stages.config.evaluation import Evaluate
from stages.config.record_kinds import HeadTail
from stages.engines.base import Completion, Request
from stages.evaluate import run
from stages.evaluation.answers import ANSWERS, RIGHT, accuracy, read_answers
from stages.evaluation.positions import POSITIONS, read_positions
from stages.job import Input, Job
from stages.models.model import load_model, load_tokenizer
from stages.reporting.table import EVALUATION
from storage.errors import DataError, EngineError
from storage.manifest import SetIdentity, build_manifest, write_manifest
from storage.sets import verify_set
from tests.stages.evaluation.cases import scored
from tests.world import END, make_job, write_model

PROMPTS = ["ab", "c", "dea", "gh", "ij", "ba"]
MAX_TOKENS = 5


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def model(root: Path) -> Path:
    return write_model(root / "model", 2)


@pytest.fixture(scope="module")
def records(root: Path) -> Input:
    teacher = write_model(root / "teacher", 1)
    directory = scored(root / "records", teacher, HeadTail(tau=0.2, candidates=2))
    return Input(str(directory), "cd" * 32)


@pytest.fixture(scope="module")
def greedy(model: Path) -> list[str]:
    """What the model says greedily to each prompt, by a plain loop without engine or cache."""
    network, tokenizer = load_model(model, "float32", "cpu"), load_tokenizer(model)
    said: list[str] = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt)["input_ids"]
        start = len(ids)
        while len(ids) < start + MAX_TOKENS and END not in ids[start:]:
            with torch.no_grad():
                logits = network(input_ids=torch.tensor([ids])).logits
            ids.append(int(logits[0, -1].argmax()))
        said.append(str(tokenizer.decode(ids[start:], skip_special_tokens=True)))
    return said


def make(
    where: Path,
    model: Path,
    answers: list[str | None],
    records: Input | None = None,
    **fields: Any,
) -> Job[Evaluate]:
    """A job over PROMPTS with reference answers, its store at `where`."""
    where.mkdir(exist_ok=True)
    file = where / "prompts.jsonl"
    lines = [{"prompt": p, "answer": a} for p, a in zip(PROMPTS, answers, strict=True)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = Evaluate.model_validate(
        {
            "prompts": {"path": str(file)},
            "verifier": {"kind": "exact_match"},
            "n": 2,
            "sampling": {"max_tokens": MAX_TOKENS},
            "run": {"engine": "transformers"},
            **fields,
        }
    )
    inputs = {"model": Input(str(model))} | ({"records": records} if records else {})
    return make_job(where / "store", "evaluate", config, inputs)


def figures(job: Job[Evaluate]) -> dict[str, Any]:
    return json.loads((job.directory / EVALUATION).read_text())


def test_everything_is_measured_and_kept(
    tmp_path: Path, model: Path, records: Input, greedy: list[str]
) -> None:
    answers = [said if i % 2 else "wrong" for i, said in enumerate(greedy)]
    job = make(tmp_path, model, [*answers], records)
    manifest = write_manifest(job.directory, run(job))
    assert manifest.kind == "metrics"
    assert {file.path for file in manifest.files} == {EVALUATION, ANSWERS, POSITIONS}
    assert verify_set(job.directory) == []

    kept = read_answers(job.directory / ANSWERS)
    assert [(a.prompt_id, a.sample) for a in kept if not a.greedy] == [
        (prompt, sample) for prompt in range(len(PROMPTS)) for sample in range(2)
    ]
    assert [a.text for a in kept if a.greedy] == greedy
    assert all((a.outcome == RIGHT) == (a.text == answers[a.prompt_id]) for a in kept)

    metrics = figures(job)["metrics"]
    assert metrics["greedy"] == 0.5
    assert metrics == manifest.meta["metrics"]
    own = accuracy(kept)
    assert {"accuracy", "pass@1", "pass@2", "tokens", "truncated", "unparsed", "cut"} < set(own)
    assert {name: metrics[name] for name in own} == own
    assert metrics["reverse_kl"] > 0.1
    assert metrics["reverse_kl_level"] == metrics["forward_kl_level"] == "unbiased"
    assert 0 < metrics["ece"] < 1
    assert figures(job)["sampling"]["temperature"] == 1.0

    positions = read_positions(job.directory / POSITIONS).values
    assert len(positions.logq_T) == metrics["held_out_tokens"]
    assert positions.entropy_T.mean() == pytest.approx(metrics["entropy"], rel=1e-2)
    assert positions.forward_kl_T is not None
    assert positions.forward_kl_T.mean() == pytest.approx(metrics["forward_kl"], abs=1e-2)
    bins = figures(job)["calibration"]["held-out rollouts"]
    assert sum(one["count"] for one in bins) == metrics["held_out_tokens"]
    gaps = [one["count"] * abs(one["confidence"] - one["truth"]) for one in bins]
    assert sum(gaps) / metrics["held_out_tokens"] == pytest.approx(metrics["ece"])


def test_truncation_is_what_the_limit_cuts(tmp_path: Path, model: Path) -> None:
    job = make(tmp_path, model, ["x"] * len(PROMPTS), sampling={"max_tokens": 1}, greedy=False)
    run(job)
    kept = read_answers(job.directory / ANSWERS)
    assert {a.tokens for a in kept} == {1}
    ended = sum(a.finish == "stop" for a in kept)
    assert figures(job)["metrics"]["truncated"] == pytest.approx(1 - ended / len(kept))


def test_without_records_or_answers_only_lengths_are_left(tmp_path: Path, model: Path) -> None:
    job = make(tmp_path, model, [None] * len(PROMPTS), greedy=False)
    run(job)
    assert set(figures(job)["metrics"]) == {"tokens", "truncated"}


def test_answers_do_not_depend_on_how_many_are_decoded_together(
    tmp_path: Path, model: Path
) -> None:
    kept = []
    for together in (1, 5, 64):
        options = {"engine": "transformers", "max_sequences": together}
        job = make(tmp_path / str(together), model, ["x"] * len(PROMPTS), run=options)
        run(job)
        kept.append(read_answers(job.directory / ANSWERS))
    assert kept[0] == kept[1] == kept[2]
    sampled = [a.text for a in kept[0] if not a.greedy]
    assert len(set(sampled)) > len(PROMPTS)  # the samples of a prompt are not copies


@contextmanager
def no_engine(*_: object, **__: object) -> Iterator[None]:
    raise AssertionError("an engine was started")
    yield


def test_a_killed_run_continues_from_its_answers(
    tmp_path: Path, model: Path, records: Input, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make(tmp_path, model, ["x"] * len(PROMPTS), records)
    first = run(job)
    (job.directory / EVALUATION).unlink()  # as if killed during the scoring pass
    monkeypatch.setattr(evaluate, "open_generator", no_engine)
    assert run(job) == first


def test_records_of_another_tokenizer_are_refused_before_anything_runs(
    tmp_path: Path, records: Input, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_model(tmp_path / "other", 3, letters="jihgfedcba")
    monkeypatch.setattr(evaluate, "open_generator", no_engine)
    with pytest.raises(DataError, match="token ids would not match"):
        run(make(tmp_path / "job", other, ["x"] * len(PROMPTS), records))


def test_what_the_objective_was_guaranteed_to_be_travels_along(tmp_path: Path) -> None:
    student = write_model(tmp_path / "student", 4)
    promise = {"level": "biased", "reason": "weights are capped"}
    commit_student(student, {"guarantee": promise})
    job = make(tmp_path / "job", student, ["x"] * len(PROMPTS), greedy=False)
    assert run(job).teacher == {"path": "teacher", "weights": "0" * 64}
    assert figures(job)["guarantee"] == promise


def test_a_student_of_a_corpus_is_measured_on_held_out_text(
    tmp_path: Path, root: Path, model: Path, records: Input, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No prompts, no engine: loss and acceptance on text, gradients and bytes of the records."""
    student = write_model(tmp_path / "student", 4)
    commit_student(student, {"objective": {"name": "forward_kl"}})
    config = Evaluate.model_validate(
        {"text": {"sequences": 50}, "gradient": {"batch_size": 16, "batches": 2}, "weight": True}
    )
    teacher = Input(str(root / "teacher"))
    inputs = {"model": Input(str(student)), "text": records, "teacher": teacher, "data": records}
    job = make_job(tmp_path / "store", "evaluate", config, inputs)
    monkeypatch.setattr(evaluate, "open_generator", no_engine)
    manifest = run(job)
    assert [file.path for file in manifest.files] == [EVALUATION]
    found = figures(job)["metrics"]
    assert set(found) == {
        "text_tokens", "text_loss", "text_loss_se", "text_ece", "text_kl", "text_kl_se",
        "acceptance", "acceptance_se", "gradient_angle", "gradient_norm", "gradient_positions",
        "bytes", "record_bytes",
    }  # fmt: skip
    at = make_job(tmp_path / "elsewhere", "evaluate", config, {**inputs, "at": Input(str(model))})
    run(at)
    moved = {name for name, value in figures(at)["metrics"].items() if value != found[name]}
    assert moved == {"gradient_angle", "gradient_norm"}


def test_a_student_that_read_no_record_has_none_to_weigh(
    tmp_path: Path, root: Path, records: Input
) -> None:
    student = write_model(tmp_path / "student", 4)
    commit_student(student, {"objective": {"name": "cross_entropy"}})
    config = Evaluate(record_bytes=True)
    inputs = {"model": Input(str(student)), "data": records}
    job = make_job(tmp_path / "store", "evaluate", config, inputs)
    run(job)
    assert figures(job)["metrics"] == {}


def commit_student(directory: Path, meta: dict[str, object]) -> None:
    """Make a model directory the committed set of a `train` stage."""
    manifest = build_manifest(
        directory,
        SetIdentity(
            "train",
            1,
            "ef" * 32,
            "train",
            "model",
            {},
            teacher={"path": "teacher", "weights": "0" * 64},
            meta=meta,
        ),
        files=sorted(path.name for path in directory.iterdir()),
    )
    write_manifest(directory, manifest)


def test_torch_is_not_imported_before_the_engine_has_set_it_up() -> None:
    code = "import sys, stages.evaluate; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


class Forgetful:
    """An engine that loses a request; no real one can be made to."""

    facts: Any = None

    def generate(
        self, requests: Iterable[Request], sampling: Sampling, candidates: Candidates = 0
    ) -> Iterator[Completion]:
        """Answers all requests but the first."""
        for request in list(requests)[1:]:
            nothing = torch.zeros(0).numpy()
            yield Completion(request.seq_id, nothing, nothing, nothing, nothing, "stop")


def test_an_unanswered_request_is_an_error_not_a_gap(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def open_forgetful(*_: object, **__: object) -> Iterator[Forgetful]:
        yield Forgetful()

    monkeypatch.setattr(evaluate, "open_generator", open_forgetful)
    with pytest.raises(EngineError, match=r"1 of 12 requests unanswered \(the first is number 0\)"):
        run(make(tmp_path, model, ["x"] * len(PROMPTS)))
