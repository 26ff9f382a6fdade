"""Whether vLLM can run the models that are given, as far as this environment tells."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

from pipeline.planning.node import External, Node
from pipeline.planning.plan import Planned
from pipeline.preflight.finding import Finding
from pipeline.preflight.scope import Scope
from stages.models.environment import cpu_build
from stages.models.hub import cached_directory

_WRITERS = ("model", "base", "init", "teacher")
"""Roles of a model that is run, or from which the model that is run is made."""
_TEXT_OF_VISION = ("qwen3_5_text", "qwen3_5_moe_text")
"""Text models whose class vLLM has in one module with a vision part."""


def check_vision_classes(scope: Scope) -> Iterator[Finding]:
    """vLLM's classes with a vision part need torchvision, which a CPU environment lacks."""
    if not importlib.util.find_spec("vllm") or importlib.util.find_spec("torchvision"):
        return
    if not cpu_build():
        return
    said: set[tuple[str, str]] = set()
    for chosen in scope.todo:
        engine = getattr(getattr(chosen.node.config, "run", None), "engine", None)
        model = _given_model(chosen)
        if engine not in ("auto", "vllm") or model is None or (model, engine) in said:
            continue
        said.add((model, engine))
        message = (
            f"{chosen.node.name}: vLLM's class for this model imports torchvision, which the CPU "
            "environment lacks"
        )
        if engine == "auto":
            yield Finding("note", model, f"{message}; transformers generates instead, more slowly")
        elif scope.elsewhere:
            yield Finding("note", model, message)
        else:
            mend = f'Set {chosen.node.stage.name}.run.engine = "transformers".'
            yield Finding("refused", model, message, mend)


def _given_model(chosen: Planned) -> str | None:
    """The model from outside that a node runs, or that the model it runs is made from."""
    source: Node | External | None = chosen.node
    while isinstance(source, Node):
        roles = [role for role in _WRITERS if role in source.inputs]
        source = source.inputs[roles[0]].source if roles else None
    if source is None or source.kind != "model" or not _has_vision(source):
        return None
    return source.path


def _has_vision(source: External) -> bool:
    known = Path(source.path)
    directory = known if known.is_dir() else cached_directory(source.path, source.revision)
    config = directory / "config.json" if directory else None
    if config is None or not config.exists():
        return False
    try:
        content = json.loads(config.read_text())
    except ValueError:  # refused where the presence of models is checked
        return False
    return "vision_config" in content or content.get("model_type") in _TEXT_OF_VISION
