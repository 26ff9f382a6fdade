"""The claims of Lightning OPD (arXiv 2604.13010) at the size of the demo.

    python -m benchmarks.lightning --seeds 5     (`make repro-lightning SEEDS=5`)

    students    offline against live, at two batch sizes; what the objective's expectation does, and
                reverse KL in its place; scores that `residualize` has corrected
    rates       learning rates and bounds on the advantage
    grid        two teachers: who taught pi_ref, and who scores
    lengths     steps of SFT
    gradients   bias, noise, drift and the paper's bound while students train
    cost        processor seconds of rollouts, scoring and training
    smollm2     (`--smollm2`) offline against live with a real language model

Models are sets of the store, made by benchmarks/lightning.toml and, the second teacher, by
benchmarks/lightning-other.toml. Students are trained in this process (`benchmarks.lightning_lab`).
One line for each stands in docs/repro-lightning.jsonl and is not made again, so a run goes on where
it was interrupted, and several processes may work on different seeds. The page shows what is done.
"""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.__main__ import memory, processor
from benchmarks.gradients import Estimate
from benchmarks.lightning_bias import Held, follow
from benchmarks.lightning_lab import Lab, Spec, divergence
from benchmarks.lightning_page import FIGURE, PAGE, figure, tables
from benchmarks.lightning_rows import ROWS, read
from benchmarks.students import Exam, responses, train
from benchmarks.teachers import make
from pipeline.planning.config import load_recipe
from pipeline.planning.document import replace_block
from stages.config.record_kinds import Sampled

log = logging.getLogger("benchmarks")

Sets = Mapping[str, Path]
"""Directories by name of their nodes."""
Rows = Mapping[str, Callable[[], Mapping[str, Any]]]
"""What makes each row of a part, by name."""

RECIPE, OTHER = (Path(__file__).with_name(f"lightning{end}.toml") for end in ("", "-other"))

MARKS = (10, 30, 60)
STUDENTS = (
    Spec("offline", marks=MARKS),
    Spec("live", live=True, marks=MARKS),
    Spec("offline, 512", batch_size=512, marks=MARKS),
    Spec("live, 512", batch_size=512, live=True, marks=MARKS),
    Spec("reverse KL", loss="corrected", rate=1e-3, marks=MARKS),
    Spec("reverse KL, live", loss="corrected", rate=1e-3, live=True, marks=MARKS),
    Spec("token summed out", loss="published"),
    Spec("reverse KL, token summed out", loss="reverse_kl"),
    Spec("residualized", scores="residualized"),
    Spec("residualized, 512", batch_size=512, scores="residualized"),
    Spec("shifted", scores="shifted"),
    Spec("shifted, token summed out", loss="published", scores="shifted"),
)
RATES = (
    *(
        Spec(f"offline, {rate:g}, clip {clip:g}", rate=rate, clip=clip)
        for rate in (1e-5, 1e-4, 3e-4, 1e-3)
        for clip in (1.0, 3.0, 10.0)
    ),
    *(Spec(f"live, {rate:g}", rate=rate, live=True) for rate in (1e-4, 1e-3)),
)
CELLS = (
    Spec("offline"),
    Spec("residualized", scores="residualized"),
    Spec("live", live=True),
)
LENGTHS = (100, 200, 400)
"""Steps of SFT, besides the recipe's."""
FOLLOWED = tuple(
    Spec(f"{rate:g}, clip {clip:g}", rate=rate, clip=clip)
    for rate in (1e-5, 3e-4, 1e-3)
    for clip in (1.0, 10.0)
)
FOLLOWED_AT = (10, 40, 120)
SEEDS = {"students": 5, "rates": 3, "grid": 3, "lengths": 3, "gradients": 2, "cost": 1}
"""How many of the seeds a part is made with."""


@dataclass(frozen=True)
class Sizes:
    """Of everything; a trial is smaller."""

    steps: int = 120
    chunks: int = 16
    overrides: tuple[str, ...] = ()
    """As after `--set`."""


class Study:
    """The models and labs of one seed.

    Args:
        seed: Of the recipe.
        store: Where sets are, or go.
        sizes: Of the runs.
    """

    def __init__(self, seed: int, store: Path, sizes: Sizes | None = None) -> None:
        self.seed, self.store, self.sizes = seed, store, sizes or Sizes()
        self._sets: dict[tuple[str, ...], Mapping[str, Path]] = {}
        self._labs: dict[tuple[str, str, int | None], Lab] = {}

    def sets(self, targets: Sequence[str], *source: str, changed: Sequence[str] = ()) -> Sets:
        """Directories of some nodes of a recipe, which are made if they are not there.

        Args:
            targets: Their names.
            source: Arguments that select the recipe.
            changed: Fields of it, as after `--set`.
        """
        every = (*self.sizes.overrides, *changed)
        arguments = (*source, *(part for one in every for part in ("--set", one)))
        known = (*targets, *arguments)
        if known not in self._sets:
            held = {name: os.environ[name] for name in ("OMP_NUM_THREADS",) if name in os.environ}
            self._sets[known] = make(self.store, list(targets), *arguments, environment=held)
        return self._sets[known]

    def own(self, targets: Sequence[str], *changed: str) -> Sets:
        """Of the recipe, at this seed."""
        return self.sets(targets, "--config", str(RECIPE), changed=(f"seed={self.seed}", *changed))

    def lab(self, taught: str = "A", scored: str = "A", sft_steps: int | None = None) -> Lab:
        """Pi_ref of one teacher, scored by one; `sft_steps` other than the recipe's."""
        wanted = taught, scored, sft_steps
        if wanted not in self._labs:
            self._labs[wanted] = self._lab(*wanted)
        return self._labs[wanted]

    def _lab(self, taught: str, scored: str, sft_steps: int | None) -> Lab:
        own = self.own(("pretrain.teacher", "sft", "teacher-logits"))
        policy, teachers = own["sft"], {"A": own["pretrain.teacher"]}
        if "B" in (taught, scored):  # the same for all seeds
            teachers["B"] = self.sets(("sft",), "--config", str(OTHER))["sft"]
        changed: list[str] = []
        if taught == "B":
            changed.append(f"teacher.path={teachers['B'].absolute()}")
        if sft_steps is not None:
            changed.append(f"sft.steps={sft_steps}")
        if changed:
            policy = self.own(("sft",), *changed)["sft"]
        recipe = load_recipe(None, [RECIPE], [*self.sizes.overrides, f"seed={self.seed}"])
        config = recipe.train.variants()["lightning"]
        return Lab(
            policy=policy,
            teacher=teachers[scored],
            prompts=own["teacher-logits"],
            config=config.model_copy(update={"steps": self.sizes.steps}),
            exam=Exam(recipe.evaluate, policy, self.seed),
            seed=self.seed,
        )


# ---------------------------------------------------------------------------------------------
# Parts


def _students(lab: Callable[[], Lab], specs: Sequence[Spec], prefix: str = "") -> Rows:
    """The exam of a start, and a run of each student."""
    made: dict[str, Callable[[], Mapping[str, Any]]] = {
        f"{prefix}start": lambda: {"accuracy": {"0": lab().exam.accuracy(lab().reference)}}
    }
    for spec in specs:
        made[f"{prefix}{spec.name}"] = lambda spec=spec: lab().run(spec)
    return made


def students(study: Study) -> Rows:
    """Offline and live, what the objective's expectation does, corrected scores."""
    return _students(study.lab, STUDENTS)


def rates(study: Study) -> Rows:
    """Learning rates and clips."""
    kept = [spec for spec in RATES if (spec.rate, spec.clip, spec.live) != (3e-4, 10.0, False)]
    rows = dict(_students(study.lab, kept))
    del rows["start"]
    return rows


def grid(study: Study) -> Rows:
    """Every pair of teachers that `students` does not have, and how far they are apart."""
    rows: dict[str, Callable[[], Mapping[str, Any]]] = {"teachers": lambda: _teachers(study)}
    for taught, scored in (("A", "B"), ("B", "A"), ("B", "B")):
        lab = lambda taught=taught, scored=scored: study.lab(taught, scored)  # noqa: E731
        made = dict(_students(lab, CELLS, f"{taught} {scored} "))
        if (taught, scored) == ("A", "B"):
            del made["A B start"]  # that of students
        if (taught, scored) == ("B", "B"):
            del made["B B start"]
        rows |= made
    return rows


def _teachers(study: Study) -> Mapping[str, Any]:
    """Accuracy of both teachers, and KL at the contexts of each pi_ref."""
    labs = {name: study.lab(name, name) for name in "AB"}
    found: dict[str, Any] = {
        f"accuracy {name}": lab.exam.accuracy(lab.scoring) for name, lab in labs.items()
    }
    first, second = (labs[name].scoring for name in "AB")
    for name, lab in labs.items():
        contexts = lab.rollouts(1, lab.drawn)
        found[f"KL A B at {name}"] = divergence(contexts, first, second)
        found[f"KL B A at {name}"] = divergence(contexts, second, first)
        for other in "AB":
            scoring = labs[other].scoring
            found[f"KL policy {name} {other}"] = divergence(contexts, lab.reference, scoring)
    return found


def lengths(study: Study) -> Rows:
    """SFT of fewer steps than the recipe's."""
    rows: dict[str, Callable[[], Mapping[str, Any]]] = {}
    for steps in LENGTHS:
        lab = lambda steps=steps: study.lab(sft_steps=steps)  # noqa: E731
        rows |= _students(lab, [CELLS[0], CELLS[2]], f"{steps} ")
    return rows


def gradients(study: Study) -> Rows:
    """Students followed by `benchmarks.lightning_bias`."""

    @cache
    def held() -> Held:
        return Held(study.lab(), study.sizes.chunks)

    def one(spec: Spec) -> Mapping[str, Any]:
        marks = tuple(mark for mark in FOLLOWED_AT if mark <= study.sizes.steps)
        return {
            str(step): {
                name: asdict(figure) if isinstance(figure, Estimate) else figure
                for name, figure in figures.items()
            }
            for step, figures in follow(held(), spec, marks)
        }

    return {spec.name: lambda spec=spec: {"steps": one(spec)} for spec in FOLLOWED}


def cost(study: Study) -> Rows:
    """Processor seconds for all steps of a student, from a few of them."""

    def one(batch_size: int) -> Mapping[str, Any]:
        lab = study.lab()
        few = max(2, 1024 // batch_size)
        shared = {"batch_size": lab.drawn, "seed": 9000, "record": Sampled()}
        models = (lab.prompts, lab.reference, lab.scoring, lab.policy)
        times: dict[str, float] = {}
        for name, plain in (("rollouts", True), ("records", False)):
            fresh = responses(*models, **shared, plain=plain)
            next(fresh)  # loads and compiles
            began = time.process_time()
            for _ in range(2):
                next(fresh)
            times[name] = (time.process_time() - began) * batch_size / (2 * lab.drawn)
        for name, live in (("training", False), ("live", True)):
            spec = replace(STUDENTS[0], batch_size=batch_size, live=live)
            lab.rollouts(few, batch_size)
            config = lab.settings(spec).model_copy(update={"steps": few})
            student = lab.start()
            steps = train(student, lab.batches(spec, student), lab.loss(spec), config)
            next(steps)
            began = time.process_time()
            list(steps)
            times[name] = (time.process_time() - began) / few
        total = {name: each * study.sizes.steps for name, each in times.items()}
        total["scoring"] = total.pop("records") - total["rollouts"]
        return total

    return {str(size): lambda size=size: one(size) for size in (64, 512)}


def smollm2(study: Study) -> Rows:
    """A real language model, on the prompts and with the SFT of its own recipe."""

    @cache
    def lab() -> Lab:
        own = f"seed={study.seed}"
        recipe = load_recipe("smollm2", None, [*study.sizes.overrides, own])
        targets = ("derive.teacher", "sft", "teacher-logits")
        sets = study.sets(targets, "--recipe", "smollm2", changed=(own,))
        main = recipe.train.variants()[recipe.train.objective.name]
        return Lab(
            policy=sets["sft"],
            teacher=sets["derive.teacher"],
            prompts=sets["teacher-logits"],
            config=main.model_copy(update={"steps": study.sizes.steps, "epochs": None}),
            exam=Exam(recipe.evaluate, sets["sft"], study.seed),
            seed=study.seed,
            dtype="bfloat16",
            drawn=64,
            stock=study.sizes.steps,
            record=recipe.teacher_logits.record,
        )

    specs = [
        Spec("offline", rate=1e-4),
        Spec("live", rate=1e-4, live=True),
        Spec("residualized", rate=1e-4, scores="residualized"),
        Spec("reverse KL, live", rate=1e-4, loss="corrected", live=True),
    ]
    return _students(lab, specs)


PARTS: Mapping[str, Callable[[Study], Rows]] = {
    one.__name__: one for one in (students, rates, grid, lengths, gradients, cost, smollm2)
}


# ---------------------------------------------------------------------------------------------
# Running


def measure(part: str, study: Study, into: Path = ROWS) -> None:
    """Make the rows of a part that are not in `into`, and append each as it is done."""
    for name, made in PARTS[part](study).items():
        named = {"part": part, "seed": study.seed, "name": name}
        if any(named.items() <= row.items() for row in read(into)):
            continue
        began = time.process_time()
        found = made()
        row = {
            **named,
            **found,
            "processor_seconds": time.process_time() - began,
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "machine": f"one core of {processor()}, {memory()}, torch {torch.__version__}",
        }
        with into.open("a") as file:  # one write: several processes append
            file.write(json.dumps(row) + "\n")
        log.info("%s, seed %d, %s: %s", part, study.seed, name, json.dumps(found))


def wanted(seeds: Sequence[int], parts: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Parts and seeds, the most important first."""
    for part in parts:
        yield from ((part, seed) for seed in seeds if seed < SEEDS.get(part, 1))


def main() -> None:
    """Measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds 0 to N - 1 (5)")
    parser.add_argument("--seed", type=int, action="append", metavar="N", help="this one alone")
    parser.add_argument("--only", action="append", choices=PARTS, help="this part alone")
    parser.add_argument("--smollm2", action="store_true", help="the real model too: hours")
    parser.add_argument("--dry", action="store_true", help="make nothing, write the page")
    parser.add_argument("--store", type=Path, default=Path("store"))
    parsed = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(1)
    studies = {seed: Study(seed, parsed.store) for seed in parsed.seed or range(parsed.seeds)}
    parts = parsed.only or [one for one in PARTS if one != "smollm2" or parsed.smollm2]
    if not parsed.dry:
        for part, seed in wanted(list(studies), parts):
            measure(part, studies[seed])
    rows = read()
    replace_block(PAGE, tables(rows))
    if rows:
        FIGURE.write_text(figure(rows))


if __name__ == "__main__":
    main()
