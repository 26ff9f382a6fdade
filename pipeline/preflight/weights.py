"""Weights: whether the engine of each stage can run them, told from `config.json`."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from pipeline.planning.node import External
from pipeline.preflight.finding import Finding
from pipeline.preflight.scope import Scope
from stages.config.stage import StageTable
from stages.config.training import Training
from stages.models.hub import cached_directory
from stages.models.quantization import Use, other_parts, quantization, quantization_problem
from storage.errors import DataError


def check_weights_usable(scope: Scope) -> Iterator[Finding]:
    """Models from outside the plan whose weights are quantised, or hold more than a text model."""
    for planned in scope.todo:
        for role, ref in planned.node.inputs.items():
            if isinstance(ref.source, External) and ref.source.kind != "set":
                directory = _directory(ref.source)
                if directory is not None:
                    use = _use(planned.node.config, role)
                    yield from _findings(ref.source.path, directory, use, scope.elsewhere)


def _directory(source: External) -> Path | None:
    here = Path(source.path)
    return here if here.is_dir() else cached_directory(source.path, source.revision)


def _use(config: StageTable, role: str) -> Use:
    """What a stage does with the model of a role."""
    if isinstance(config, Training):
        return "transformers" if role == "teacher" else "training"
    engine = getattr(getattr(config, "run", None), "engine", "transformers")
    if engine == "auto":
        engine = "vllm" if importlib.util.find_spec("vllm") else "transformers"
    return "vllm" if engine == "vllm" else "transformers"


def _findings(path: str, directory: Path, use: Use, elsewhere: bool) -> Iterator[Finding]:
    try:
        method, beside = quantization(directory), other_parts(directory)
    except DataError:  # `models.check_presence` refuses it
        return
    problem = quantization_problem(method, use) if method else None
    if problem is not None:
        certain = use == "training" or not elsewhere
        yield Finding("refused" if certain else "note", path, *problem)
    elif method is not None:
        yield Finding(
            "note",
            path,
            f"its weights are quantised ({method}); records will hold what they say, not what the "
            "original would",
        )
    if beside:
        yield Finding(
            "note",
            path,
            f"holds weights for {' and '.join(beside)} beside a text model, which are not used; a "
            "student of it is saved as a text model without them",
        )
