"""The page of offline against live: who pays for what, and tables of known figures."""

from benchmarks.live import PAGE, RECIPE, STUDIES, Paid, comparisons, read, spread, tables
from pipeline.planning.config import load_recipe
from pipeline.planning.nodes import Node, build
from stages.reporting.table import Row, summarise, with_gain


def paid(row: str) -> Paid:
    study = next(study for study in STUDIES if row in study.students)
    nodes = {node.name: node for node in build(load_recipe(None, [RECIPE], study.of_seed(1)))}
    student = nodes[f"evaluate.{study.students[row]}"].inputs["model"].source
    assert isinstance(student, Node)
    return Paid.by(student)


def test_a_student_pays_for_all_its_rounds_and_a_live_one_for_no_records() -> None:
    offline, live, rounds = paid("offline"), paid("live"), paid("4 rounds of 30 steps")
    assert [one.name for one in offline.records] == ["teacher-logits", "rollouts"]
    assert [one.name for one in offline.training] == ["train.reverse_kl"]
    assert [one.name for one in live.training] == ["train.live"]
    assert not live.records
    stages = [one.stage.name for one in rounds.records]
    assert (len(rounds.training), stages.count("rollouts"), stages.count("teacher-logits")) == (
        4,
        4,
        4,
    )
    assert offline.steps == live.steps == rounds.steps == paid("2 rounds of 60 steps").steps
    assert paid("two passes").steps == 2 * live.steps


def test_students_at_equal_steps_read_as_many_sequences() -> None:
    """Less what is held out, every set has exactly what the steps of its readers need."""
    for study in STUDIES:
        recipe = load_recipe(None, [RECIPE], study.of_seed(0))
        prompts = recipe.rollouts.prompts.limit
        train = prompts - round(recipe.rollouts.holdout * prompts)
        needed = recipe.train.steps * recipe.train.batch_size
        passes = needed / (train * recipe.rollouts.n)
        assert passes == (2 if recipe.train.rounds * recipe.train.steps > 120 else 1)


def figures(live: float, offline: float, longer: float) -> list[Row]:
    def row(name: str, accuracy: float, steps: float, records: float, training: float) -> Row:
        cost = {"steps": steps, "records": records, "training": training}
        return {"model": name, "accuracy": accuracy, "teacher_tokens": 250_000.0, **cost}

    start: Row = {"model": "start (SFT)", "accuracy": 0.5}
    rows = [
        start,
        row("live", live, 120.0, 0.0, 50.0),
        row("offline", offline, 120.0, 30.0, 10.0),
        row("longer", longer, 240.0, 30.0, 30.0),
    ]
    return with_gain(rows, "live")


RUNS = [
    {"seed": seed, "date": "2026-11-28", "minutes": 2.0, "machines": ["a CPU"], "rows": rows}
    for seed, rows in enumerate([figures(0.8, 0.7, 0.9), figures(0.6, 0.54, 0.62)])
]


def test_differences_are_paired_within_a_seed_with_their_standard_error() -> None:
    rows = summarise([run["rows"] for run in RUNS])  # pyright: ignore[reportArgumentType]
    offline = next(row for row in rows if row["model"] == "offline")
    # -10 and -6: the mean is -8, the standard error |-10 - -6| / 2.
    assert spread(offline, "gain", signed=True) == "-8.0 ± 2.0"
    assert spread(offline, "accuracy") == "62.0 ± 8.0"


def test_what_is_equal_decides_which_students_are_listed() -> None:
    rows = summarise([run["rows"] for run in RUNS])  # pyright: ignore[reportArgumentType]
    found = {line[0]: line[1] for line in comparisons(rows).rows}
    assert found["steps"] == "offline -8.0 ± 2.0"
    assert found["teacher tokens"] == "longer +6.0 ± 4.0; offline -8.0 ± 2.0"
    assert found["time, records included"] == "offline -8.0 ± 2.0"
    assert found["time, records already there"] == "longer +6.0 ± 4.0; offline -8.0 ± 2.0"


def test_one_seed_has_no_errors() -> None:
    text = tables(RUNS[:1])
    assert "±" not in text
    assert "`make live SEEDS=1`: one seed; 2 min of stages on a CPU, 2026-11-28." in text
    assert "| start (SFT) | - | - | - | - | - | 50.0 | -30.0 |" in text


def test_the_page_shows_the_runs_that_are_kept_beside_it() -> None:
    assert tables(read()) in PAGE.read_text()
