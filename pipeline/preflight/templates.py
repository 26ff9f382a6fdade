"""Chat templates: the teacher reads what the student read, unless it is told otherwise."""

from collections.abc import Iterator

from pipeline.preflight.finding import Finding
from pipeline.preflight.scope import Scope
from stages.config.generation import Generate
from stages.config.records import TeacherLogits
from stages.data.chat_template import read_template
from stages.models.chat_template import chat_template


def check_teacher_template(scope: Scope) -> Iterator[Finding]:
    """A teacher that scores prompts in another form than its own is off its distribution."""
    for node in scope.nodes("teacher-logits"):
        origin, teacher = scope.origin(node), scope.model(node, "teacher")
        assert isinstance(node.config, TeacherLogits)
        if origin is None or teacher is None or not isinstance(origin.config, Generate):
            continue
        policy = scope.models.writer(origin)
        subject = f"template of {teacher.called}"
        if node.config.teacher_prompt is not None:
            yield Finding("ok", subject, f"{node.heading} renders prompts for the teacher itself")
            continue
        if teacher.words is None or policy.words is None:
            unknown = teacher if teacher.words is None else policy
            yield Finding("ok", subject, f"known once {unknown.called} is there")
            continue
        own = chat_template(teacher.words)
        used = read_template(origin.config.prompts.template) or chat_template(policy.words)
        if _plain(own) == _plain(used):
            what = "the same as" if own else "none, as"
            yield Finding("ok", subject, f"{what} that of {policy.called}, which writes")
        else:
            yield Finding(
                "note",
                subject,
                f"prompts are rendered with {_named(used)} ({policy.called}), but the teacher has "
                f"{_named(own)}: it scores them in a form that it was not trained on",
                'Set teacher-logits.teacher_prompt = { template = "{prompt}" } to let the teacher '
                "read the same prompts through its own template, or give the student the "
                "teacher's tokenizer files.",
            )


def _plain(template: str | None) -> str:
    """Blind to line ends, and to one after the template, which Jinja drops."""
    return (template or "").replace("\r\n", "\n").removesuffix("\n")


def _named(template: str | None) -> str:
    """A template, by its first words."""
    if not template:
        return "no chat template"
    start = " ".join(template.split())
    return f"the chat template `{start if len(start) <= 40 else start[:37] + '...'}`"
