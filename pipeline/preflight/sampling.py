"""How much is drawn, and what is left to train on."""

from collections.abc import Iterator

from pipeline.preflight.finding import Finding
from pipeline.preflight.scope import Scope
from stages.config.corpus import Corpus
from stages.config.evaluation import Evaluate
from stages.config.generation import Generate, Rollouts, SftData
from stages.config.training import Training
from stages.data.prompts import count_prompts
from stages.generation import held_out_count


def check_repeats(scope: Scope) -> Iterator[Finding]:
    """Several responses to one prompt are only worth their price if they can differ."""
    for planned in scope.todo:
        config = planned.node.config
        if not isinstance(config, Generate | Evaluate) or config.prompts is None:
            continue
        if config.n > 1 and config.sampling.temperature == 0:
            yield Finding(
                "note",
                planned.node.heading,
                f"n = {config.n} at temperature 0: all responses to a prompt are the same",
                "Set n = 1, or raise sampling.temperature.",
            )


def check_holdout(scope: Scope) -> Iterator[Finding]:
    """Not all of what students learn from is held out."""
    for node in scope.nodes("corpus", "sft-data", "rollouts"):
        config = node.config
        assert isinstance(config, Corpus | SftData | Rollouts)
        learners = [
            other.node.heading
            for other in scope.known.values()
            if isinstance(other.node.config, Training)
            and (scope.origin(other.node) is node or scope.corpus(other.node) is config)
        ]
        if config.holdout == 1.0 and learners:
            yield Finding(
                "refused",
                node.heading,
                f"holdout = 1 holds everything out for evaluation and leaves {learners[0]} nothing "
                "to train on",
                f"Lower {node.stage.name}.holdout.",
            )
        elif isinstance(config, SftData) and not config.holdout:
            continue
        elif not isinstance(config, Corpus) and (count := count_prompts(config.prompts)):
            held_out = held_out_count(count, config.holdout)
            message = f"{held_out:,} of {count:,} prompts are held out for evaluation"
            yield Finding("ok", node.heading, message)
