"""What is imported once for all stages, before they are forked."""

from importlib.util import find_spec

import pytest

from pipeline.execution.chain import imports_of
from pipeline.planning.config import load_recipe
from pipeline.planning.nodes import build
from pipeline.planning.plan import Planned
from stages.engines.vllm_process import CPU_ENGINE
from stages.models.environment import cpu_build

TRANSFORMERS = "stages.engines.transformers_engine"


def planned(name: str, *overrides: str) -> Planned:
    """A node of the demo; its key is of no matter here."""
    nodes = build(load_recipe("demo", overrides=list(overrides)))
    (node,) = (one for one in nodes if one.name == name)
    return Planned(node, None, {}, {})


@pytest.mark.skipif(not cpu_build(), reason="with a GPU nothing is imported beforehand")
@pytest.mark.skipif(find_spec("vllm") is None, reason="`auto` takes it where it is installed")
def test_the_engine_of_a_stage_is_imported_with_it() -> None:
    """A fork that imports torch and transformers by itself takes seconds to do so, each time."""
    demo = planned("rollouts")
    assert imports_of([demo]) == ["pipeline.verbs", TRANSFORMERS, "stages.rollouts"]
    vllm = set(imports_of([planned("rollouts", 'rollouts.run.engine="vllm"')]))
    assert vllm == {"pipeline.verbs", "stages.rollouts", *CPU_ENGINE}
    assert set(CPU_ENGINE) < set(imports_of([demo, planned("evaluate.reverse_kl")]))
    assert "storage.kernels" in imports_of([planned("teacher-logits")])
