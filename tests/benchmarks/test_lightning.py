"""The page of Lightning OPD's claims: its students on a tiny world, and tables of known figures."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import lightning
from benchmarks.enumerated import published
from benchmarks.lightning import OTHER, PARTS, Study, measure
from benchmarks.lightning_bias import Held, follow
from benchmarks.lightning_lab import Lab, Spec, residualized
from benchmarks.lightning_page import FIGURE, PAGE, figure, tables
from benchmarks.lightning_rows import Figures, read
from benchmarks.students import Exam
from pipeline.planning.config import load_recipe
from stages.config.data import PromptSource, Sampling, Verifier
from stages.config.evaluation import Evaluate
from stages.config.record_kinds import HeadTail
from stages.config.training import Student
from stages.data.verifiers import exact_match
from stages.objectives.lightning import Lightning
from stages.objectives.tensors import TorchRecords
from tests.world import VOCABULARY, make_world

# ---------------------------------------------------------------------------------------------
# Students


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Random models; a question asks for what the teacher likes to say."""
    root = tmp_path_factory.mktemp("lab")
    world = make_world(root, count=32)
    questions = root / "questions.jsonl"
    lines = [{"prompt": first + second, "answer": "a"} for first in "abcd" for second in "efgh"]
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = Evaluate(
        prompts=PromptSource(path=str(questions)),
        verifier=Verifier(kind="exact_match", extract="(.)"),
        sampling=Sampling(max_tokens=6),
    )
    return Lab(
        policy=world.reference,
        teacher=world.teacher,
        prompts=world.root / "records",
        config=Student(steps=4, batch_size=8, schedule="constant"),
        exam=Exam(table, world.reference, seed=0),
        seed=0,
        drawn=16,
        stock=2,
        record=HeadTail(tau=0.1, candidates=2),
    )


def test_the_summed_out_objective_is_the_mean_of_the_drawn_one() -> None:
    """Its gradient too: over every token that pi_ref may draw, as often as it does."""
    draw = torch.Generator().manual_seed(0)
    b, p, z = (3.0 * torch.randn(5, 7, generator=draw, dtype=torch.float64) for _ in range(3))
    logb, logp = b.log_softmax(-1), p.log_softmax(-1)
    z.requires_grad_()
    logq = z.log_softmax(-1)
    none = torch.zeros(0, dtype=torch.long)
    drawn = torch.zeros(5, dtype=torch.float64)
    for token in range(7):
        records = TorchRecords(
            entry_off=torch.zeros(6, dtype=torch.long),
            tok_T=torch.full((5,), token),
            row_E=none,
            ids_E=none,
            weight_E=none.double(),
            logp_E=none.double(),
            exact_E=none.bool(),
            rest_T=torch.ones(5),
            lp_T=logp[:, token],
            ref_lp_T=logb[:, token],
            ent_T=None,
        )
        one = Lightning(clip=2.0)(none.double(), logq[:, token], records).loss_T
        drawn = drawn + logb[:, token].exp() * one
    summed = published(logb, logp, logq, clip=2.0)
    torch.testing.assert_close(summed, drawn)
    ours, theirs = (torch.autograd.grad(x.sum(), z, retain_graph=True)[0] for x in (summed, drawn))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "spec",
    [
        Spec("offline", marks=(0, 2)),
        Spec("live", live=True),
        Spec("corrected", loss="corrected"),
        Spec("corrected, live", loss="corrected", live=True),
        Spec("summed out", loss="published"),
        Spec("reverse KL", loss="reverse_kl"),
        Spec("residualized", scores="residualized"),
        Spec("shifted", loss="published", scores="shifted"),
    ],
    ids=lambda spec: spec.name,
)
def test_every_student_leaves_its_start(lab: Lab, spec: Spec) -> None:
    found = lab.run(replace(spec, batch_size=8, rate=1e-2))
    assert list(found["accuracy"]) == [str(mark) for mark in (*spec.marks, 4)]
    assert all(0.0 <= right <= 1.0 for right in found["accuracy"].values())
    assert found["drift"] > 1e-3


def test_offline_students_read_the_stock_in_order_and_again(lab: Lab) -> None:
    batches = lab.batches(Spec("offline", batch_size=8), lab.start())
    drawn = [next(batches) for _ in range(5)]
    stock = lab.rollouts(4, 8)
    np.testing.assert_array_equal(np.concatenate([one.tok for one in drawn[:2]]), stock[0].tok)
    assert len(stock) == 2
    np.testing.assert_array_equal(drawn[4].tok, drawn[0].tok)


def test_residualized_scores_have_no_overall_mean_left(lab: Lab) -> None:
    stock = lab.rollouts(4, 8)
    corrected = residualized(stock, seed=0, vocab_size=VOCABULARY)

    def gap(batches: Any) -> float:
        return float(np.concatenate([one.lp - one.ref_lp for one in batches]).mean())

    assert gap(stock) < -1.0
    assert abs(gap(corrected)) < 0.3 * abs(gap(stock))
    for before, after in zip(stock, corrected, strict=True):
        assert after.tok is before.tok


def test_the_objective_is_unbiased_at_pi_ref_and_biased_once_the_student_has_moved(
    lab: Lab,
) -> None:
    """Without a clip. The theorem's bound holds, at 0 on both sides where the student starts."""
    held = Held(lab, chunks=4, per_chunk=8)
    spec = Spec("followed", batch_size=8, rate=0.03, clip=1e6)
    figures = dict(follow(held, spec, (0, 4)))
    start, moved = figures[0], figures[4]
    assert start["cosine_token"].value == pytest.approx(1.0, abs=1e-4)  # type: ignore[union-attr]
    assert start["drift"] == pytest.approx(0.0, abs=1e-4)
    assert start["chi2_least"] == pytest.approx(0.0, abs=1e-3)
    assert moved["cosine_token"].value < 0.99  # type: ignore[union-attr]
    assert moved["drift"] > start["drift"]  # type: ignore[operator]
    assert moved["bound"] > moved["gap"].value  # type: ignore[union-attr,operator]
    assert 0.0 <= moved["rare"] <= 1.0  # type: ignore[operator]
    assert 0.0 <= moved["accuracy"] <= 1.0  # type: ignore[operator]


def test_the_second_teacher_learns_from_sorted_and_right_answers_alone() -> None:
    check = exact_match(load_recipe(None, [OTHER]).sft_data.verifier.extract)
    texts = (
        "6+7+0=13,4+8+1=13,3+5+1=09,>0933",
        "7+6+0=13,4+8+1=13,3+5+1=09,>0933",
        "6+7+0=13,4+8+1=13,3+5+1=09,>0943",
    )
    assert (check(texts, ["0933"] * 3, [False] * 3) == 1).tolist() == [True, False, False]


# ---------------------------------------------------------------------------------------------
# Rows and the page


def test_a_row_that_is_there_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def one(name: str) -> dict[str, float]:
        made.append(name)
        return {"value": 1.0}

    rows = {name: lambda name=name: one(name) for name in ("first", "second")}
    monkeypatch.setitem(lightning.PARTS, "counted", lambda study: rows)  # type: ignore[arg-type]
    into = tmp_path / "rows.jsonl"
    for seed in (0, 0, 1):
        measure("counted", Study(seed, tmp_path), into)
    assert made == ["first", "second"] * 2
    assert [(row["seed"], row["name"]) for row in read(into)] == [
        (0, "first"), (0, "second"), (1, "first"), (1, "second"),
    ]  # fmt: skip


def test_names_of_rows_are_distinct(tmp_path: Path) -> None:
    study = Study(0, tmp_path)
    counts = {part: len(made(study)) for part, made in PARTS.items()}
    assert counts == {
        "students": 13, "rates": 13, "grid": 11, "lengths": 9, "gradients": 6, "cost": 2,
        "smollm2": 5,
    }  # fmt: skip


def row(part: str, seed: int, name: str, accuracy: float, **more: Any) -> dict[str, Any]:
    curve = dict.fromkeys(("10", "30", "60", "120"), accuracy)
    facts = {"processor_seconds": 60.0, "date": "2026-11-29", "machine": "a core"}
    return {"part": part, "seed": seed, "name": name, "accuracy": curve, **facts, **more}


ROWS = [
    row("students", seed, name, right, drift=0.1)
    for seed, start in enumerate((0.5, 0.6, 0.7))
    for name, right in (("start", start), ("offline", start + 0.1), ("live", start + 0.3))
    if (seed, name) != (2, "live")
]


def test_differences_are_paired_within_seeds_that_have_both() -> None:
    found = Figures(ROWS)
    assert found.mean("students", "offline") == "70.0 ± 5.8"
    assert found.minus(("students", "offline"), ("students", "live")) == "-20.0 ± 0.0"
    assert found.minus(("students", "live"), ("students", "start")) == "+30.0 ± 0.0"
    assert found.minus(("students", "live"), ("students", "absent")) == "-"
    assert found.count("students") == "2 to 3 seeds"


def test_the_page_has_a_table_for_every_part_that_was_made() -> None:
    assert tables([]) == "`make repro-lightning SEEDS=5` puts its tables here."
    text = tables(ROWS)
    assert "### Offline against live" in text
    assert "### Two teachers" not in text
    assert "| Lightning | 64 | offline | 70.0 ± 5.8 |" in text
    assert "8 min of processor time on a core, 2026-11-29." in text
    assert "offline, 64" in figure(ROWS)


def test_the_page_shows_the_rows_that_are_kept_beside_it() -> None:
    rows = read()
    assert tables(rows) in PAGE.read_text()
    assert not rows or figure(rows) == FIGURE.read_text()
