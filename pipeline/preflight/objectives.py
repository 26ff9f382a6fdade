"""What students learn from, and whether it can carry what they minimise."""

from collections.abc import Iterator, Mapping
from typing import cast

from pipeline.planning.node import External, Node
from pipeline.preflight.finding import Finding
from pipeline.preflight.scope import Scope
from stages.config.generation import Generate
from stages.config.record_kinds import Sampled
from stages.config.records import Residualize, TeacherLogits
from stages.config.training import Student
from stages.objectives.contract import guarantee, guarantee_in_full
from storage.errors import AfterglowError, ConfigError
from storage.files.place import place
from storage.manifest import read_manifest


def check_contract(scope: Scope) -> Iterator[Finding]:
    """The legality contract, before the teacher is paid for records that cannot serve."""
    for node in scope.nodes("train"):
        config = node.config
        if not isinstance(config, Student):
            continue
        meta = described(node)
        if meta is None:
            continue
        try:
            found = (
                guarantee_in_full(config.weights)
                if config.reads_all
                else guarantee(config.objective, meta, None, config.weights)
            )
        except ConfigError as error:
            problem, _, mend = str(error).partition(". ")
            yield Finding("refused", node.heading, problem, mend)
            continue
        source, level = node.data, found.level.replace("_", " ")
        read = source.path if isinstance(source, External) else source.name if source else "nothing"
        yield Finding("ok", node.heading, f"{config.objective.name} on {read} is {level}")


def check_outcomes(scope: Scope) -> Iterator[Finding]:
    """What reads outcomes, where responses are judged, and several to a prompt are there."""
    for node in scope.nodes("train"):
        config, origin = node.config, scope.origin(node)
        if not isinstance(config, Student):
            continue
        readers = [one.name for one in config.weights if one.reads_outcome or one.reads_rates]
        readers += [one.name for one in config.objective.losses if one.reads_outcome]
        if readers and config.data == "live":
            yield Finding(
                "refused",
                node.heading,
                f"`{readers[0]}` reads whether a response is right, and fresh responses "
                '(data = "live") are not judged',
                "Train on stored records, or leave it out.",
            )
            continue
        rates = [one.name for one in config.weights if one.reads_rates or one.reads_groups]
        if not rates or origin is None or not isinstance(origin.config, Generate):
            continue
        if origin.config.n == 1:
            yield Finding(
                "refused",
                node.heading,
                f"train.weights: `{rates[0]}` compares the responses to a prompt, and "
                f"{origin.name} has one response to each",
                f"Set {origin.stage.name}.n = 4 or more, or remove the weight.",
            )


def check_likelihood(scope: Scope) -> Iterator[Finding]:
    """Likelihood of rollouts is likelihood of the student's own mistakes too."""
    for node in scope.nodes("train"):
        origin, config = scope.origin(node), node.config
        if not isinstance(config, Student) or origin is None or origin.stage.name != "rollouts":
            continue
        if any(weight.reads_outcome for weight in config.weights):
            continue
        for loss in config.objective.losses:
            if loss.reads_teacher or (loss.reads_outcome and getattr(loss, "on", "") != "wrong"):
                continue
            yield Finding(
                "note",
                node.heading,
                f"{loss.name} on rollouts raises the likelihood of whatever {origin.name} wrote, "
                "mistakes included",
                'Restrict it to right answers (a term of a mixture with on = "right"), or train '
                'on the teacher\'s answers (data = "sft-data").',
            )


def described(node: Node) -> Mapping[str, object] | None:
    """What the contract asks of the set that a student reads, as its manifest will have it.

    None where the set was made elsewhere and its manifest cannot be read, which another check says.
    """
    ref = node.inputs.get("records") or node.inputs.get("data")
    return None if ref is None else _described(ref.source)


def _described(source: Node | External) -> Mapping[str, object] | None:
    if isinstance(source, External):
        try:
            return read_manifest(place(source.path)).meta
        except AfterglowError:
            return None
    config = source.config
    if isinstance(config, Generate):
        sampling = config.sampling
        return {"sampling": sampling.model_dump(), "full_support": sampling.full_support}
    below = source.data
    meta: Mapping[str, object] | None = {} if below is None else _described(below)
    if meta is None:
        return None
    if isinstance(config, TeacherLogits):
        return {**meta, "record": config.record.described()}
    if isinstance(config, Residualize):
        record = cast("Mapping[str, float]", meta.get("record") or {})
        recorded = record.get("temperature", 1.0)
        corrected = Sampled(temperature=recorded).described() | {"correction": config.model_dump()}
        return {**meta, "record": corrected}
    return meta
