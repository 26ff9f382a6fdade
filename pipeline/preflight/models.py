"""Models: that they are there, and share their token ids."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.planning.node import External
from pipeline.preflight.finding import Finding
from pipeline.preflight.known import KnownModel
from pipeline.preflight.scope import Scope
from stages.config.corpus import GGUF, Corpus
from stages.config.derive import Derive
from stages.models.facts import model_outline
from stages.models.hub import cached_directory
from stages.models.identity import tokenizer_of
from stages.models.packaged import packaged_file
from stages.models.tokenizer_comparison import Compatible, Different, compare
from storage.errors import AfterglowError, ConfigError, DataError


def check_presence(scope: Scope) -> Iterator[Finding]:
    """What nodes read from outside the plan: models, sets, files."""
    for planned in scope.todo:
        for path, error in planned.lacks.items():
            message = str(error).removeprefix(f"{path}: ")
            level = "note" if scope.later else "refused"
            yield Finding(level, path, message, error=type(error))
        for role, ref in planned.node.inputs.items():
            if isinstance(ref.source, External) and ref.source.path not in planned.lacks:
                yield _found(ref.source, scope.model(planned.node, role))


def check_gguf(scope: Scope) -> Iterator[Finding]:
    """Files that models or tokenizers come from; those of a package may not be installed."""
    for planned in scope.todo:
        table = planned.node.config
        named = table.gguf if isinstance(table, Derive) else None
        if isinstance(table, Corpus) and (table.tokenizer.path or "").endswith(GGUF):
            named = table.tokenizer.path
        if named is None:
            continue
        try:
            file = packaged_file(named)
        except ConfigError as error:
            yield Finding("refused", named, str(error), error=ConfigError)
            continue
        if file.is_file():
            yield Finding("ok", named, f"{file.stat().st_size / 1e6:.0f} MB")
        else:
            yield Finding("refused", named, f"{file}: no such file", "Check the recipe.")


def _found(source: External, model: KnownModel | None) -> Finding:
    if source.kind == "set":
        return Finding("ok", source.path, "committed set")
    facts = ""
    if model is not None:
        ids = f", {model.rows:,} logits" if model.rows else ""
        context = f", context {model.context:,}" if model.context else ""
        facts = ids + context
    directory = Path(source.path)
    if directory.is_dir():
        try:
            model_outline(directory)
        except DataError as error:
            return Finding("refused", source.path, str(error), error=DataError)
        return Finding("ok", source.path, f"model directory{facts}")
    if cached_directory(source.path, source.revision) is not None:
        return Finding("ok", source.path, f"Hub model, in the cache of this machine{facts}")
    return Finding(
        "note",
        source.path,
        "no such directory, and not a Hub id known here, so nothing is known of the model yet",
        "If it is a Hub id, `afterglow run` downloads it: check again then. If it is a path, "
        f"relative ones start at {Path.cwd()}.",
    )


def check_tokenizers(scope: Scope) -> Iterator[Finding]:
    """Whoever writes, scores or learns gives the token ids of a set the same meaning."""
    for node in scope.nodes("sft", "teacher-logits", "train"):
        origin = scope.origin(node)
        reader = scope.model(node, {"sft": "base", "train": "init"}.get(node.stage.name, "teacher"))
        if origin is None or reader is None:
            continue
        writer = scope.models.writer(origin)
        subject = f"tokenizer of {reader.called}"
        if writer.called == reader.called:
            continue
        if reader.words is None or writer.words is None:
            unknown = reader if reader.words is None else writer
            yield Finding("ok", subject, f"known once {unknown.called} is there")
            continue
        try:
            found = compare(tokenizer_of(writer.words), tokenizer_of(reader.words))
        except AfterglowError as error:
            yield Finding("refused", subject, str(error), error=type(error))
            continue
        sizes = f" ({reader.rows:,} logits, {writer.rows:,})" if reader.rows and writer.rows else ""
        if isinstance(found, Different):
            yield Finding(
                "refused",
                subject,
                f"token ids of {writer.called} would not match: {found.reason}{sizes}",
                "Use models of one tokenizer.",
                DataError,
            )
        elif isinstance(found, Compatible):
            yield Finding(
                "note", subject, f"shares the ids of {writer.called}; {found.note}{sizes}"
            )
        else:
            yield Finding("ok", subject, f"the same as that of {writer.called}{sizes}")
