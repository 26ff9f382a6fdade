"""The chain as data."""

import subprocess
import sys

from pipeline.graph import BY_NAME, STAGES, downstream


def test_stages_come_after_what_they_need() -> None:
    seen: set[str] = set()
    for stage in STAGES:
        assert set(stage.needs) <= seen, stage.name
        seen.add(stage.name)


def test_downstream_is_all_that_reads_a_set_directly_or_not() -> None:
    assert downstream("teacher-logits") == {"residualize", "train", "evaluate", "report"}
    assert downstream("corpus") == {stage.name for stage in STAGES} - {"corpus"}
    assert downstream("report") == set()


def test_names_map_to_modules() -> None:
    assert BY_NAME["teacher-logits"].module == "stages.teacher_logits"


def test_graph_imports_the_standard_library_only() -> None:
    program = (
        "import sys; before = set(sys.modules); import pipeline.graph;"
        "new = {name.split('.')[0] for name in set(sys.modules) - before};"
        "print(sorted(new - set(sys.stdlib_module_names) - {'pipeline'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
