"""What students learn from."""

from collections.abc import Iterator

from pipeline.preflight.finding import Finding
from pipeline.preflight.scope import Scope
from stages.config.training import Student


def check_likelihood(scope: Scope) -> Iterator[Finding]:
    """Likelihood of rollouts is likelihood of the student's own mistakes too."""
    for node in scope.nodes("train"):
        origin, config = scope.origin(node), node.config
        if not isinstance(config, Student) or origin is None or origin.stage.name != "rollouts":
            continue
        if any(weight.reads_outcome for weight in config.weights):
            continue
        for loss in config.objective.losses:
            if loss.reads_teacher or (loss.reads_outcome and getattr(loss, "on", "") == "right"):
                continue
            yield Finding(
                "note",
                node.heading,
                f"{loss.name} on rollouts raises the likelihood of whatever {origin.name} wrote, "
                "mistakes included",
                'Restrict it to right answers (a term of a mixture with on = "right"), or train '
                'on the teacher\'s answers (data = "sft-data").',
            )
