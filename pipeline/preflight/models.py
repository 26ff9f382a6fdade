"""Models: that they are there, and fit each other."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.planning.nodes import External
from pipeline.preflight.finding import Finding
from pipeline.preflight.scope import Scope
from stages.config.derive import Derive
from stages.models.hub import cached_directory
from stages.models.packaged import packaged_file
from storage.errors import ConfigError


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


def check_gguf(scope: Scope) -> Iterator[Finding]:
    """Files that `derive` reads models from; those of a recipe's package may not be installed."""
    for planned in scope.todo:
        table = planned.node.config
        if not isinstance(table, Derive) or table.gguf is None:
            continue
        try:
            file = packaged_file(table.gguf)
        except ConfigError as error:
            yield Finding("refused", table.gguf, str(error), error=ConfigError)
            continue
        if file.is_file():
            yield Finding("ok", table.gguf, f"{file.stat().st_size / 1e6:.0f} MB")
        else:
            yield Finding("refused", table.gguf, f"{file}: no such file", "Check `gguf`.")


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
