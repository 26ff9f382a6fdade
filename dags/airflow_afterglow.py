"""The chain as Airflow 3 DAGs: `afterglow` runs a recipe, `afterglow_<name>` further students.

This file holds no stage logic. Stages and edges come from `pipeline.graph`, work units from
`afterglow units`, and every task runs the `afterglow` command. Parsing needs Airflow,
`pipeline.graph` and `pipeline.command`; the latter two need only the standard library.

For each stage, `<stage>.units` lists the remaining work, `<stage>.run` is mapped over the list, and
`<stage>.commit` writes the manifest and updates the asset `afterglow://<stage>`. If the recipe
lacks the stage, or the stage is done, its tasks are skipped and no asset is updated.

Exit code 75 (the machine was the cause) and death by a signal are retried. Every other failure is
final, because waiting does not fix bad data. The DAG processor and the workers read these settings
from the environment when they parse the file:

    AFTERGLOW_COMMAND        the command, default `afterglow`; may include arguments
    AFTERGLOW_UNITS          maximum of mapped tasks of a set, default 8
    AFTERGLOW_GPU_POOL       pool of the tasks that use a GPU, default `default_pool`
    AFTERGLOW_RETRY_SECONDS  minimum wait before the first of five retries, default 60; then doubled
    AFTERGLOW_STUDENTS       recipes (TOML files, separated by blanks) of students to train and
                             evaluate on every new set of teacher records
"""

import shlex
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Asset, Param, TriggerRule, task, task_group
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
)

from pipeline import command
from pipeline.graph import BY_NAME, STAGES, Stage, downstream

UNITS = command.setting("UNITS", "8")
GPU_POOL = command.setting("GPU_POOL", "default_pool")
RETRY_SECONDS = float(command.setting("RETRY_SECONDS", "60"))
STUDENTS = [Path(name) for name in shlex.split(command.setting("STUDENTS", ""))]

RECORDS = BY_NAME["train"].reads["data"][0]
"""The stage whose sets students train on by default."""
ASSETS = {stage.name: Asset(f"afterglow://{stage.name}") for stage in STAGES}
"""The committed sets of each stage; the event's `extra` holds their directories by node."""

DEFAULTS = {
    "retries": command.RETRIES,
    "retry_delay": timedelta(seconds=RETRY_SECONDS),
    "retry_exponential_backoff": 2.0,  # a factor: True would be 1
}
SHORT_NAME = (
    "{{ task.op_kwargs['unit'][1:4]"
    " | reject('in', ['--shard', '--here', '--config', '--recipe']) | join(' ') }}"
)
"""Name of a mapped task in the UI: the node and its parts, as in `rollouts 0-3`."""
_STDOUT = 1
"""Airflow logs lines of stdout as information, and lines of stderr as errors."""


def recipe_params(config: list[str]) -> dict[str, Param]:
    """Parameters of a run: what selects the recipe on the command line."""
    return {
        "recipe": Param("demo", type="string", description="a recipe that comes with the package"),
        "config": Param(config, type="array", description="TOML files; replace `recipe`"),
        "overrides": Param([], type="array", description="single fields: train.steps=500"),
    }


def arguments(params: dict[str, Any], more: list[str]) -> list[str]:
    """Arguments of `afterglow` that select the recipe of a run."""
    overrides = [*params["overrides"], *more]
    return command.recipe_arguments(params["recipe"], params["config"], overrides)


def call(words: list[str]) -> dict[str, Any]:
    """The last line of `afterglow WORDS`, parsed; its log goes to the task's log.

    Raises:
        AirflowException: it failed and may succeed later: Airflow retries it.
        AirflowFailException: it failed, and a retry would fail too.
    """
    try:
        return command.call(words, log=_STDOUT)
    except command.Failed as failed:
        raise (AirflowException if failed.again else AirflowFailException)(str(failed)) from None


def add_stage(stage: Stage, choices: Any) -> Any:
    """The three tasks of a stage as one group.

    Args:
        stage: From `pipeline.graph`.
        choices: Lists of further overrides, or the task that returns them; the stage is completed
            with each.
    """

    @task_group(group_id=stage.name.replace("-", "_"))
    def group(choices: Any) -> None:
        @task(trigger_rule=TriggerRule.NONE_FAILED)
        def units(choices: list[list[str]], params: dict[str, Any]) -> list[list[str]]:
            asked = ["units", stage.name, "--at-most", UNITS]
            found = [call([*asked, *arguments(params, more)])["units"] for more in choices]
            return [unit for some in found for unit in some]

        @task(pool=GPU_POOL if stage.gpu else "default_pool", map_index_template=SHORT_NAME)
        def run(unit: list[str]) -> None:
            call(unit)

        @task(trigger_rule=TriggerRule.NONE_FAILED, outlets=[ASSETS[stage.name]])
        def commit(
            choices: list[list[str]],
            worked: list[list[str]],
            params: dict[str, Any],
            outlet_events: Any,
        ) -> None:
            asked = ["commit", stage.name, "--if-present"]
            done = [call([*asked, *arguments(params, more)]) for more in choices]
            if not worked and not any(one["new"] for one in done):
                raise AirflowSkipException(f"{stage.name}: nothing to do, so no asset is updated")
            outlet_events[ASSETS[stage.name]].extra = {
                node: directory for one in done for node, directory in one["sets"].items()
            }

        todo = units(choices)
        run.expand(unit=todo) >> commit(choices, todo)

    return group(choices)


def add_chain(names: set[str], choices: Any) -> None:
    """The stages `names`, connected as in the graph."""
    groups = {stage.name: add_stage(stage, choices) for stage in STAGES if stage.name in names}
    for stage in STAGES:
        for needed in stage.needs:
            if {stage.name, needed} <= names:
                groups[needed] >> groups[stage.name]


with DAG(
    "afterglow",
    schedule=None,
    catchup=False,
    params=recipe_params([]),
    default_args=DEFAULTS,
    doc_md=__doc__,
    tags=["afterglow"],
):
    add_chain({stage.name for stage in STAGES}, [[]])


def add_students(recipe: Path) -> None:
    """A DAG that trains the students of one recipe on newly committed records."""
    with DAG(
        f"afterglow_{recipe.stem}",
        schedule=[ASSETS[RECORDS]],
        catchup=False,
        params=recipe_params([str(recipe.absolute())]),
        default_args=DEFAULTS,
        doc_md=f"Trains and evaluates the students of {recipe} on every new set of records.",
        tags=["afterglow"],
    ):

        @task
        def records(triggering_asset_events: Any) -> list[list[str]]:
            """The sets that triggered this run, each as an override of `train.data`."""
            events = [event for found in triggering_asset_events.values() for event in found]
            sets = [directory for event in events for directory in event.extra.values()]
            return [[f"train.data={directory}"] for directory in dict.fromkeys(sets)] or [[]]

        add_chain(downstream(RECORDS), records())


for student in STUDENTS:
    add_students(student)
