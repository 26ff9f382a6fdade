"""Contexts: long enough for what is written, scored and trained on."""

from collections.abc import Iterator

from pipeline.planning.node import Node, Ref
from pipeline.preflight.finding import Finding
from pipeline.preflight.known import KnownModel
from pipeline.preflight.scope import Scope
from stages.config.evaluation import Evaluate
from stages.config.generation import Generate
from stages.config.training import Training
from storage.errors import DataError

_READERS = {"pretrain": "", "sft": "base", "train": "init", "teacher-logits": "teacher"}
"""Stages that read whole sequences, and the role of the model that does."""


def check_writers(scope: Scope) -> Iterator[Finding]:
    """The model that answers has room for the longest prompt and `max_tokens`."""
    for node in scope.nodes("sft-data", "rollouts", "evaluate"):
        config = node.config
        if not isinstance(config, Generate | Evaluate) or config.prompts is None:
            continue
        model = scope.models.writer(node)
        longest = scope.longest_prompt(config.prompts, model)
        if longest is None or model.context is None:
            continue
        subject, most = f"context of {model.called}", config.sampling.max_tokens
        asked = config.run.max_model_len
        wanted = min(longest + most, model.context)
        if longest + 1 > model.context:
            yield Finding(
                "refused",
                subject,
                f"{model.context:,} tokens, but a prompt of {config.prompts.where} has {longest:,} "
                "and one token of response must fit",
                "Shorten or remove such prompts, or use a model of longer context.",
                DataError,
            )
        elif asked is not None and not wanted <= asked <= model.context:
            yield Finding(
                "refused",
                subject,
                f"{node.heading} run.max_model_len = {asked:,}, but prompts of up to {longest:,} "
                f"and responses of up to {most:,} tokens need {wanted:,}, and the model's context "
                f"is {model.context:,}",
                "Remove run.max_model_len, or lower sampling.max_tokens.",
            )
        elif longest + most > model.context:
            yield Finding(
                "note",
                subject,
                f"{model.context:,} tokens: after a prompt of {longest:,} a response ends at "
                f"{model.context - longest:,} tokens, not at max_tokens = {most:,}",
                "Lower sampling.max_tokens, or use a model of longer context.",
            )
        else:
            yield Finding(
                "ok",
                subject,
                f"{model.context:,} tokens, {longest + most:,} needed by {node.heading}",
            )


def check_readers(scope: Scope) -> Iterator[Finding]:
    """The model that learns or scores has room for whole sequences."""
    for planned in scope.todo:
        node = planned.node
        if node.stage.name not in _READERS:
            continue
        model, (sequence, sure) = _reader(scope, node), _longest_sequence(scope, node)
        limit = node.config.max_length if isinstance(node.config, Training) else None
        if sequence is not None and limit is not None:
            sequence = min(sequence, limit)
        if model is None or model.context is None or sequence is None:
            continue
        subject = f"context of {model.called}"
        if sequence <= model.context:
            if sure:
                message = f"{model.context:,} tokens, {node.heading} reads up to {sequence:,}"
                yield Finding("ok", subject, message)
            continue
        cut = f"set {node.stage.name}.max_length, " if isinstance(node.config, Training) else ""
        yield Finding(
            "refused",
            subject,
            f"{model.context:,} tokens, but the sequences that {node.heading} reads have up to "
            f"{sequence:,}",
            f"Lower sampling.max_tokens of the stage that writes them, {cut}or use a model of "
            "longer context.",
            DataError,
        )


def _reader(scope: Scope, node: Node) -> KnownModel | None:
    """The model that reads the sequences of a node."""
    role = _READERS[node.stage.name]
    return scope.model(node, role) if role in node.inputs else scope.models.find(Ref(node))


def _longest_sequence(scope: Scope, node: Node) -> tuple[int | None, bool]:
    """Tokens of the longest sequence that a node may read, and whether its prompt is known."""
    source = scope.origin(node)
    if source is None:
        corpus = scope.corpus(node)
        return (corpus.sequence_length if corpus else None), True
    config, writer = source.config, scope.models.writer(source)
    assert isinstance(config, Generate)
    longest = scope.longest_prompt(config.prompts, writer)
    written = (longest or 1) + config.sampling.max_tokens
    return (min(written, writer.context) if writer.context else written), longest is not None
