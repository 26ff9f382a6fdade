"""Runs in Dagster's environment, on the instance in DAGSTER_HOME; prints one line of JSON.

python dagster_program.py add PARTITION...       name partitions
python dagster_program.py materialize PARTITION  every asset, in this process
python dagster_program.py runs                   steps of every run, and the latest sets
"""

import json
import sys
from typing import Any

import dagster_afterglow  # pyright: ignore[reportMissingImports]
from dagster import DagsterInstance, materialize  # pyright: ignore[reportMissingImports]

ASSETS = list(dagster_afterglow.defs.assets or [])
SHOWN = {"STEP_START", "STEP_SUCCESS", "STEP_FAILURE", "STEP_UP_FOR_RETRY", "STEP_RESTARTED"}


def steps(instance: DagsterInstance, run: str) -> list[dict[str, Any]]:
    """What happened to the steps of a run, in order."""
    return [
        {"step": record.step_key, "event": record.dagster_event_type.value, "at": record.timestamp}
        for record in instance.all_logs(run)
        if record.dagster_event_type and record.dagster_event_type.value in SHOWN
    ]


def sets(instance: DagsterInstance) -> dict[str, Any]:
    """Directories of the latest materialisation of each asset, by node."""
    events = instance.get_latest_materialization_events([asset.key for asset in ASSETS])
    return {
        key.path[-1]: event.asset_materialization.metadata["sets"].value
        for key, event in events.items()
        if event and event.asset_materialization
    }


def main() -> int:
    """Do what the command line says."""
    verb, *partitions = sys.argv[1:]
    with DagsterInstance.get() as instance:
        if verb == "add":
            instance.add_dynamic_partitions("afterglow", partitions)
        elif verb == "materialize":
            materialize(ASSETS, partition_key=partitions[0], instance=instance)
        runs = [
            {"status": run.status.value, "steps": steps(instance, run.run_id)}
            for run in reversed(instance.get_runs())
        ]
        sys.stdout.write(json.dumps({"runs": runs, "sets": sets(instance)}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
