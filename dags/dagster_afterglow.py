"""The chain as Dagster assets: stages are assets, recipes partitions, sets materialisations.

This file holds no stage logic. Stages and edges come from `pipeline.graph`, work units from
`afterglow units`, and every step runs the `afterglow` command. Loading needs Dagster,
`pipeline.graph` and `pipeline.command`; the latter two need only the standard library.

A partition is named by the arguments that select its recipe: `demo`, `my.toml`, or either followed
by overrides, `demo seed=1 train.steps=500`. Materialising a stage for a partition makes the set (or
sets) of that stage for that recipe. Add partitions in the UI, or with

    instance.add_dynamic_partitions("afterglow", ["demo seed=1"])

Exit code 75 (the machine was the cause) and death by a signal are retried; every other failure is
final. Steps that use a GPU are in the pool `afterglow_gpu`, which has no limit until one is set.
Settings, read from the environment when the file is loaded:

    AFTERGLOW_COMMAND        the command, default `afterglow`; may include arguments
    AFTERGLOW_UNITS          maximum of parallel steps of a set, default 8
    AFTERGLOW_RETRY_SECONDS  wait before each of five retries, default 60
"""

import shlex
from typing import Any

from dagster import (
    AssetIn,
    AssetsDefinition,
    Definitions,
    DynamicOut,
    DynamicOutput,
    DynamicPartitionsDefinition,
    Failure,
    In,
    Nothing,
    OpExecutionContext,
    Out,
    Output,
    RetryRequested,
    graph_asset,
    op,
)

from pipeline import command
from pipeline.graph import STAGES, Stage

UNITS = command.setting("UNITS", "8")
RETRY_SECONDS = float(command.setting("RETRY_SECONDS", "60"))
GPU_POOL = "afterglow_gpu"
RECIPES = DynamicPartitionsDefinition(name="afterglow")


def arguments(partition: str) -> list[str]:
    """Arguments of `afterglow` that select the recipe of a partition."""
    source, *overrides = shlex.split(partition)
    return command.recipe_arguments(source, [source] * source.endswith(".toml"), overrides)


def call(words: list[str]) -> dict[str, Any]:
    """The last line of `afterglow WORDS`, parsed.

    Raises:
        RetryRequested: it failed and may succeed later.
        Failure: it failed, and a retry would fail too.
    """
    try:
        return command.call(words)
    except command.Failed as failed:
        if failed.again:
            raise RetryRequested(command.RETRIES, RETRY_SECONDS) from failed
        raise Failure(str(failed), allow_retries=False) from None


def asset_name(stage: str) -> str:
    """Name of the asset of a stage: Dagster allows no dashes."""
    return stage.replace("-", "_")


def stage_asset(stage: Stage) -> AssetsDefinition:
    """The asset of one stage: list units, run them in parallel, commit."""
    name = asset_name(stage.name)
    needed = [asset_name(need) for need in stage.needs]
    pool = GPU_POOL if stage.gpu else None

    @op(name=f"{name}_units", ins={need: In(Nothing) for need in needed}, out=DynamicOut(list))
    def units(context: OpExecutionContext) -> Any:
        selected = arguments(context.partition_key)
        found = call(["units", stage.name, "--at-most", UNITS, *selected])["units"]
        for index, unit in enumerate(found):
            yield DynamicOutput(unit, mapping_key=str(index))

    @op(name=f"{name}_run", pool=pool)
    def run(unit: list) -> bool:  # pyright: ignore[reportMissingTypeArgument]
        call(unit)
        return True

    @op(name=f"{name}_commit", out=Out(dict))
    def commit(context: OpExecutionContext, done: list) -> Any:  # pyright: ignore[reportMissingTypeArgument]
        selected = arguments(context.partition_key)
        sets = call(["commit", stage.name, "--if-present", *selected])["sets"]
        yield Output(sets, metadata={"sets": sets, "units": len(done)})

    @graph_asset(
        name=name,
        description=stage.summary,
        ins={need: AssetIn(dagster_type=Nothing) for need in needed},
        partitions_def=RECIPES,
        group_name="afterglow",
    )
    def asset(**upstream: Any) -> Any:
        return commit(units(**upstream).map(run).collect())

    return asset


defs = Definitions(assets=[stage_asset(stage) for stage in STAGES])
