"""Where responses end: pi_ref must stop where the teacher would."""

from collections.abc import Iterator

from pipeline.preflight.finding import Finding
from pipeline.preflight.known import KnownModel
from pipeline.preflight.scope import Scope
from stages.config.records import TeacherLogits
from storage.errors import DataError


def check_ends(scope: Scope) -> Iterator[Finding]:
    """The policy that writes and the teacher that scores end a response with the same token."""
    for node in scope.nodes("teacher-logits"):
        origin, teacher = scope.origin(node), scope.model(node, "teacher")
        assert isinstance(node.config, TeacherLogits)
        if origin is None or teacher is None or origin.stage.name != "rollouts":
            continue
        policy = scope.models.writer(origin)
        subject = f"end of {policy.called}"
        if teacher.words is None or policy.words is None:
            unknown = teacher if teacher.words is None else policy
            yield Finding("ok", subject, f"known once {unknown.called} is there")
            continue
        try:
            yield _compared(subject, policy, teacher)
        except DataError as error:
            yield Finding("refused", subject, str(error), error=DataError)


def _compared(subject: str, policy: KnownModel, teacher: KnownModel) -> Finding:
    end, own = teacher.end, policy.end
    if end is None:
        return Finding("ok", subject, f"{teacher.called} has no end token to compare with")
    if end in policy.stops:
        also = f", and at {_ids(policy, policy.stops - {end})}" if policy.stops - {end} else ""
        return Finding("ok", subject, f"stops at the teacher's end token{also}")
    message = (
        f"stops at {_ids(policy, policy.stops)}, but {teacher.called} ends its answers with "
        f"{_ids(teacher, {end})}: "
    )
    if policy.tuned:
        return Finding(
            "note",
            subject,
            message + "unless it has learnt to, it writes on to max_tokens",
            f"Let [sft] train on answers of this teacher, or put {end} into eos_token_id of the "
            "student's generation_config.json.",
        )
    return Finding(
        "refused",
        subject,
        message + "it would write past the end of its answers to max_tokens",
        "Train it on the teacher's answers first ([sft-data] and [sft]), or give it the teacher's "
        f"tokenizer files, or put {end} beside {own} into eos_token_id of its "
        "generation_config.json.",
        DataError,
    )


def _ids(model: KnownModel, ids: frozenset[int] | set[int]) -> str:
    """Ids with their tokens."""
    if not ids:
        return "no token"
    return ", ".join(f"{one} {model.tokenizer.decode([one])!r}" for one in sorted(ids))
