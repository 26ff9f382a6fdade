"""Models: that they are there, and fit each other."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.planning.nodes import External
from pipeline.preflight.finding import Finding
from pipeline.preflight.scope import Scope
from stages.models.hub import cached_directory


def check_presence(scope: Scope) -> Iterator[Finding]:
    """What nodes read from outside the plan: models, sets, files."""
    for planned in scope.todo:
        for path, error in planned.lacks.items():
            message = str(error).removeprefix(f"{path}: ")
            level = "note" if scope.later else "refused"
            yield Finding(level, path, message, error=type(error))
        for ref in planned.node.inputs.values():
            if isinstance(ref.source, External) and ref.source.path not in planned.lacks:
                yield _found(ref.source)


def _found(source: External) -> Finding:
    if source.kind == "set":
        return Finding("ok", source.path, "committed set")
    if Path(source.path).is_dir():
        return Finding("ok", source.path, "model directory")
    if cached_directory(source.path, source.revision) is not None:
        return Finding("ok", source.path, "Hub model, in the cache of this machine")
    return Finding(
        "note",
        source.path,
        "no such directory, and not a Hub id known here, so nothing is known of the model yet",
        "If it is a Hub id, `afterglow run` downloads it: check again then. If it is a path, "
        f"relative ones start at {Path.cwd()}.",
    )
