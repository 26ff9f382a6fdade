"""When the gradient on records departs from the live one, and which figure of drift says so.

    python -m benchmarks.drift demo        students trained here, at several learning rates
    python -m benchmarks.drift smollm2     a real language model: on its way, and once trained

A student is trained on the records of a recipe at several learning rates, from healthy ones to
those at which it collapses. At several steps two gradients of the recipe's objective are taken at
its weights:

    offline   on fresh rollouts of pi_ref, weighted as the objective does
    live      on fresh rollouts of the student itself, where all weights are 1

Both are scored by the same teacher with the record parameters of the set, and compared without the
noise of the sample (`benchmarks.gradients`). Beside them stand the candidates: figures of drift on
the tokens of the offline rollouts.

Runs that are done stand in docs/drift.jsonl and are not made again; the tables go between the
markers of docs/drift.md.

Shape letters: T positions of a batch, N chunks, P parameters (every k-th, of large models), K parts
of the responses.
"""

import argparse
import json
import logging
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.__main__ import memory, processor
from benchmarks.gradients import Estimate, Floats, compare, place
from benchmarks.harness import ROOT, Table, markdown
from benchmarks.students import ROWS_PER_CHUNK, responses, train
from benchmarks.teachers import make
from pipeline.planning.config import load_recipe
from pipeline.planning.document import replace_block
from stages.config.training import Student
from stages.losses.head_loss import RecordLoss
from stages.models.model import lm_head, load_model, response_hidden
from stages.objectives.temper import build_objective
from stages.objectives.tensors import TorchRecords
from stages.training.drift import ratio_sums, summary
from storage.batch import Batch
from storage.manifest import read_manifest
from storage.stream import Stream, read_split

log = logging.getLogger("benchmarks")

PAGE, ROWS = ROOT / "docs" / "drift.md", ROOT / "docs" / "drift.jsonl"


@dataclass(frozen=True)
class Finished:
    """A student that a recipe has trained, measured as it is."""

    overrides: tuple[str, ...] = ()
    """Of fields of the recipe."""


@dataclass(frozen=True)
class Plan:
    """What is measured with the models of a recipe."""

    teacher: str
    """The node that makes it."""
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    steps: int
    """Of the schedule."""
    marks: tuple[int, ...]
    """Steps at which gradients are compared."""
    chunks: int
    per_chunk: int
    """Sequences."""
    halves: bool = True
    """Whether the two halves of the responses are compared too, at twice the cost of a gradient."""
    finished: tuple[Finished, ...] = ()


PLANS = {
    "demo": Plan(
        "pretrain.teacher", (3e-4, 1e-3, 2e-3, 3e-3, 1e-2), (0, 1), 120, (10, 40, 120), 16, 128
    ),
    "smollm2": Plan(
        "derive.teacher", (1e-2, 1e-3), (0,), 375, (40,), 8, 24, False,
        (
            Finished(),
            Finished(
                (  # as docs/smollm2.md has it
                    "train.learning_rate=1e-4",
                    "train.epochs=2",
                    "rollouts.prompts.limit=3100",
                    "rollouts.holdout=0.0323",
                    'train.objective={name="reverse_kl",max_weight=10.0}',
                )
            ),
        ),
    ),
}  # fmt: skip
_MOST_PARAMETERS = 1 << 21


@dataclass(frozen=True)
class Setting:
    """Models, records and sizes."""

    teacher: Path
    teacher_dtype: str
    policy: Path
    """Pi_ref."""
    student: Path
    """Where the student starts."""
    records: Path
    config: Student
    """Steps, batch size, schedule and objective; the rate is that of each run."""
    chunks: int = 24
    per_chunk: int = 128
    """Sequences."""
    halves: bool = True
    """Whether the two halves of the responses are compared too."""


@dataclass(frozen=True)
class Row:
    """One student."""

    rate: float
    seed: int
    step: int
    losses: tuple[float, float]
    """Of the objective, offline and live, nats per token."""
    cosine: Estimate
    difference: Estimate
    """Norm of the difference of the two gradients over that of the live one."""
    by_place: tuple[Estimate, Estimate]
    """Cosine of the gradients at the first and the second half of the responses."""
    candidates: dict[str, float]


def held_out(setting: Setting, seed: int) -> list[Batch]:
    """Fresh rollouts of pi_ref, scored: the same for all students that are compared on them."""
    teacher = load_model(setting.teacher, setting.teacher_dtype, "cpu")
    policy = load_model(setting.policy, "float32", "cpu")
    return list(_rollouts(setting, policy, teacher, seed=1000 + seed))


def measure(
    setting: Setting, rate: float, seed: int, marks: Sequence[int], held: Sequence[Batch]
) -> Iterator[Row]:
    """Train at `rate` and compare at the steps `marks`, offline on `held`."""
    teacher = load_model(setting.teacher, setting.teacher_dtype, "cpu")
    student = load_model(setting.student, "float32", "cpu")
    config = setting.config.model_copy(update={"learning_rate": rate})
    record = read_manifest(setting.records).meta.get("record")
    loss = RecordLoss(build_objective(config.objective, record), ROWS_PER_CHUNK)
    with closing(Stream(setting.records, seed=seed, batch_size=config.batch_size)) as batches:
        for step in train(student, batches, loss, config):
            if step in marks:
                offline = [gradients(student, batch, loss, setting.halves) for batch in held]
                fresh = _rollouts(setting, student, teacher, seed=2000 + seed + step)
                live = [gradients(student, batch, loss, setting.halves) for batch in fresh]
                yield _row(rate, seed, step, offline, live, held)
            if step == max(marks):
                return


def _rollouts(
    setting: Setting, model: PreTrainedModel, teacher: PreTrainedModel, seed: int
) -> Iterator[Batch]:
    """Chunks of fresh responses of `model` to prompts of the set, scored by the teacher."""
    fresh = responses(
        setting.records, model, teacher, setting.policy, batch_size=setting.per_chunk, seed=seed
    )
    return islice(fresh, setting.chunks)


# ---------------------------------------------------------------------------------------------
# Gradients


@dataclass(frozen=True)
class Gradients:
    """Of one chunk, and what the loss says of its positions."""

    parts_KP: Tensor
    """By the first and by the second half of each response; they add up to the whole. Or that."""
    loss: float
    log_w_T: Floats
    covered_T: NDArray[np.bool_]


def gradients(model: PreTrainedModel, batch: Batch, loss: RecordLoss, halves: bool) -> Gradients:
    """Gradients of the mean loss over `batch`, half by half or whole."""
    records = TorchRecords.from_batch(batch)
    assert records.ref_lp_T is not None, "rollouts know how they were drawn"
    first_T = torch.from_numpy(place(batch) < 0.5)
    stride = 1 + sum(weight.numel() for weight in model.parameters()) // _MOST_PARAMETERS
    found: list[Tensor] = []
    total = 0.0
    logq_T = torch.empty(batch.tokens, dtype=torch.float64)
    hidden_TD = response_hidden(model, batch)
    parts = (first_T, ~first_T) if halves else (torch.ones_like(first_T),)
    for kept_T in parts:
        weight_T = kept_T.to(hidden_TD.dtype)
        value, stats = loss(hidden_TD, lm_head(model), batch, records, weight_T, batch.tokens)
        value.backward(retain_graph=kept_T is not parts[-1])
        total += float(value.detach())
        logq_T[kept_T] = stats["logq"].double()
        own = [weight.grad for weight in model.parameters() if weight.grad is not None]
        found.append(torch.cat([weight.flatten()[::stride] for weight in own]))
        model.zero_grad(set_to_none=True)
    log_w_T = (logq_T - records.ref_lp_T.double()).numpy()
    return Gradients(torch.stack(found), total, log_w_T, records.covers_token().numpy())


def _row(
    rate: float,
    seed: int,
    step: int,
    offline: Sequence[Gradients],
    live: Sequence[Gradients],
    held: Sequence[Batch],
) -> Row:
    ours, theirs = (torch.stack([one.parts_KP for one in side]) for side in (offline, live))
    cosine, difference = compare(ours.sum(1), theirs.sum(1))
    by_place = [Estimate(math.nan, math.nan)] * 2
    if ours.shape[1] == 2:
        by_place = [compare(ours[:, half], theirs[:, half])[0] for half in (0, 1)]
    return Row(
        rate,
        seed,
        step,
        (fmean(one.loss for one in offline), fmean(one.loss for one in live)),
        cosine,
        difference,
        (by_place[0], by_place[1]),
        candidates(offline, held),
    )


# ---------------------------------------------------------------------------------------------
# Candidates


def candidates(offline: Sequence[Gradients], held: Sequence[Batch]) -> dict[str, float]:
    """Figures of drift on tokens of pi_ref, by name.

    All but `chi2`, `ess` and `w2` are means of quantities that are bounded or linear in log w:
    `tv` is E[(1 - w)+], the total variation between the two policies, `states` the same of the
    prefixes (1 - W)+, W the product of the w before a position, and `sequence` of whole responses.
    """
    log_w_T = np.concatenate([one.log_w_T for one in offline])
    covered_T = np.concatenate([one.covered_T for one in offline])
    place_T = np.concatenate([place(batch) for batch in held])
    own = torch.from_numpy(log_w_T)
    sums = summary(*ratio_sums(own, torch.zeros_like(own)).tolist())
    before: list[Floats] = []
    whole: list[float] = []
    for one, batch in zip(offline, held, strict=True):
        for start, stop in pairwise(batch.tok_off.tolist()):
            total = np.cumsum(one.log_w_T[start:stop])
            before.append(np.concatenate([[0.0], total[:-1]]))
            whole.append(float(total[-1]))
    w_T = np.exp(log_w_T)
    return {
        "drift": sums["drift"],
        "first half": -float(log_w_T[place_T < 0.5].mean()),
        "second half": -float(log_w_T[place_T >= 0.5].mean()),
        "sequence KL": -fmean(whole),
        "tv": float(_lost(log_w_T).mean()),
        "states": float(_lost(np.concatenate(before)).mean()),
        "mean w": sums["drift_mean"],
        "ess": sums["drift_ess"],
        "chi2": sums["drift_chi2"],
        "w2": float((w_T**2 * ~covered_T).mean()),
    }


def _lost(log_w: Floats) -> Floats:
    """(1 - w)+: what the student no longer gives of the probability this was drawn with."""
    return -np.expm1(np.minimum(log_w, 0.0))


# ---------------------------------------------------------------------------------------------
# Showing

HEADER = (
    "rate", "seed", "step", "offline loss", "live loss", "cosine", "difference", "cosine, halves",
    "drift", "drift, halves", "sequence KL", "tv", "states", "mean w", "ess", "chi2", "w2",
)  # fmt: skip


def cells(row: Row) -> list[str]:
    """A row of the table."""
    c = {name: f"{value:.3g}" for name, value in row.candidates.items()}
    halves = c.pop("first half"), c.pop("second half")
    return [
        f"{row.rate:g}",
        str(row.seed),
        str(row.step),
        *(f"{loss:.3f}" for loss in row.losses),
        str(row.cosine),
        str(row.difference),
        "; ".join(map(str, row.by_place)),
        f"**{c.pop('drift')}**",
        "; ".join(halves),
        *c.values(),
    ]


def main() -> None:
    """Measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", choices=PLANS)
    parser.add_argument("--store", type=Path, default=Path("store"))
    parsed = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(1)
    plan = PLANS[parsed.recipe]
    setting = of_recipe(parsed.recipe, parsed.store)
    runs: list[tuple[Setting, float, int, tuple[int, ...], int]] = []
    for one in plan.finished:
        start = of_recipe(parsed.recipe, parsed.store, one)
        runs.append((start, start.config.learning_rate, 0, (0,), plan.steps))
    runs += [(setting, rate, seed, plan.marks, 0) for seed in plan.seeds for rate in plan.rates]
    rollouts: dict[tuple[Path, int], list[Batch]] = {}
    for start, rate, seed, marks, made in runs:
        objective = start.config.objective.name
        named = {
            "recipe": parsed.recipe,
            "objective": objective,
            "rate": rate,
            "seed": seed,
            "from": made,
        }
        if any(named.items() <= run.items() for run in done()):
            continue
        began = time.time()
        drawn = start.records, seed
        if drawn not in rollouts:
            rollouts[drawn] = held_out(start, seed)
        rows: list[Row] = []
        for row in measure(start, rate, seed, marks, rollouts[drawn]):
            rows.append(replace(row, step=made + row.step))
            log.info(" | ".join(cells(rows[-1])))
        facts = {
            "teacher": distance(start.records),
            "seconds": time.time() - began,
            "machine": f"one core of {processor()}, {memory()}, torch {torch.__version__}",
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "sequences": plan.chunks * plan.per_chunk,
        }
        with ROWS.open("a") as file:
            rows_json = [asdict(row) for row in rows]
            file.write(json.dumps({**named, **facts, "rows": rows_json}) + "\n")
    replace_block(PAGE, tables())


def done() -> list[dict[str, Any]]:
    """The runs that have been made."""
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def tables() -> str:
    """What the page shows: a table for each recipe that has runs."""
    parts: list[str] = []
    for recipe, objective in sorted({(run["recipe"], run["objective"]) for run in done()}):
        runs = [run for run in done() if (run["recipe"], run["objective"]) == (recipe, objective)]
        runs.sort(key=lambda run: (run["rate"], run["seed"], run["from"]))
        rows = [_read(row) for run in runs for row in run["rows"]]
        minutes = sum(run["seconds"] for run in runs) / 60
        parts.append(
            f"### {recipe}, {objective}\n\n`python -m benchmarks.drift {recipe}`: "
            f"{runs[0]['sequences']:,} sequences on each side, {minutes:.0f} min on "
            f"{runs[0]['machine']}, {runs[-1]['date']}. KL(pi_ref || teacher) on the records is "
            f"{runs[0]['teacher']:.2f} nats a token.\n\n"
            f"{markdown(Table('', HEADER, [cells(row) for row in rows]))}"
        )
    return "\n".join(parts)


def _read(row: dict[str, Any]) -> Row:
    estimates = {name: Estimate(**row[name]) for name in ("cosine", "difference")}
    first, second = (Estimate(**one) for one in row["by_place"])
    return Row(**{**row, **estimates, "by_place": (first, second)})


def of_recipe(recipe: str, store: Path, finished: Finished | None = None) -> Setting:
    """The sets of a recipe, made if they are not in the store; where to start is `finished`."""
    plan, overrides = PLANS[recipe], list(finished.overrides if finished else ())
    loaded = load_recipe(recipe, overrides=overrides)
    assert loaded.teacher is not None, "each of these recipes has one"
    objective = loaded.train.objective.name
    start = f"train.{objective}" if finished else "sft"
    options = [word for override in overrides for word in ("--set", override)]
    targets = [plan.teacher, "sft", "teacher-logits", start]
    sets = make(store, list(dict.fromkeys(targets)), "--recipe", recipe, *options)
    student = loaded.train.variants()[objective]
    return Setting(
        teacher=sets[plan.teacher],
        teacher_dtype=loaded.teacher.dtype,
        policy=sets["sft"],
        student=sets[start],
        records=sets["teacher-logits"],
        config=student.model_copy(update={"steps": plan.steps, "epochs": None}),
        chunks=plan.chunks,
        per_chunk=plan.per_chunk,
        halves=plan.halves,
    )


def distance(records: Path) -> float:
    """KL(pi_ref || teacher) in nats per token, as a set of records estimates it."""
    lost, tokens = 0.0, 0
    for batch in read_split(records, "train"):
        assert batch.ref_lp is not None, "records of rollouts"
        assert batch.lp is not None, "records of a teacher"
        lost += float((batch.ref_lp - batch.lp).sum(dtype=np.float64))
        tokens += batch.tokens
    return lost / tokens


if __name__ == "__main__":
    main()
