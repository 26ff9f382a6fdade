"""What a recipe names outside of itself, as content: files, tokenizers, tasks, verifiers.

A key holds the digest of a file's content, never its path. A missing file has the digest None: a
plan for another machine can still be shown, and running it reports the missing file. Imports
neither torch nor transformers.
"""

import hashlib
import json
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from stages.config.corpus import GGUF, Corpus
from stages.config.data import PromptSource
from stages.config.derive import Derive
from stages.config.stage import StageTable
from stages.data.hub import commit_of, hub_dataset
from stages.data.prompt_files import prompt_files
from stages.data.prompts import numbered_rows
from stages.data.tasks import task
from stages.data.verifiers import verifier_identity
from stages.models.identity import DigestCache, tokenizer_hash
from stages.models.packaged import packaged_file
from storage.errors import ConfigError, DataError

_GLOB = "*?["

STDLIB = "{stdlib}"
"""At the beginning of a text pattern: the standard library of the running Python, text that every
machine has."""


def content_identity(
    table: StageTable, cache: DigestCache, *, ask: bool = False
) -> dict[str, object]:
    """Everything outside the recipe that `table` names, by content; None for a missing file.

    Args:
        table: Of a stage.
        cache: Digests that are known already.
        ask: The Hub may be asked for the commit of a data set, which is None while unknown.

    Raises:
        ConfigError: the task does not exist; or the Hub has no such data set.
        DataError: the tokenizer directory holds no tokenizer; or a directory of prompts is unclear.
        RetryError: the Hub cannot be reached.
    """
    if isinstance(table, Corpus):
        return corpus_identity(table, cache)
    if isinstance(table, Derive):
        return _gguf_identity(table, cache) if table.gguf else {}
    prompts = table.prompt_source()
    if prompts is None:
        return {}
    verifier = getattr(table, "verifier", None)
    rules = verifier_identity(verifier) if verifier else {}
    found = prompts_identity(prompts, cache, ask=ask)
    return found | (rules if rules and has_answers(prompts) else {})


def content_paths(table: StageTable) -> str:
    """The files `table` names, for a message."""
    if isinstance(table, Corpus):
        given = table.tokenizer.path
        return ", ".join([*table.text, given] if given else table.text)
    if isinstance(table, Derive):
        return table.gguf or ""
    prompts = table.prompt_source()
    named = [prompts.path, prompts.template.file] if prompts else []
    return " or ".join(name for name in named if name)


def prompts_identity(
    source: PromptSource, cache: DigestCache | None = None, *, ask: bool = False
) -> dict[str, object]:
    """What decides the prompts of `source` beside its table.

    Content of its files, commit of its data set, or name and version of its task; and the content
    of the template file, if there is one.

    Raises:
        ConfigError, DataError, RetryError: as `content_identity`.
    """
    template = _template_identity(source, cache)
    if source.task is not None:
        return _task_identity(source.task) | template
    if (name := hub_dataset(source.path)) is not None:
        return {"dataset": name, "commit": commit_of(name, source.revision, ask=ask)} | template
    path = Path(source.path or "")
    if path.is_dir() and (files := sorted(path.rglob("*.arrow"))):
        return {"sha256": _digest_of_files(path, files, cache)} | template
    if path.is_dir():
        files = prompt_files(path, source.split)
        return {"sha256": _digest_of_files(None, files, cache)} | template
    known = (cache or DigestCache()).sha256(path) if path.is_file() else None
    return {"sha256": known} | template


def _template_identity(source: PromptSource, cache: DigestCache | None) -> dict[str, object]:
    """Content of `template.file`; empty where the model's own template is used."""
    if source.template.file is None:
        return {}
    file = Path(source.template.file)
    return {"template": (cache or DigestCache()).sha256(file) if file.is_file() else None}


def has_answers(source: PromptSource) -> bool:
    """Whether a verifier has something to do: the first row has the column of answers.

    Without it the rules of the verifier decide nothing and stay out of the key. False for files
    that are missing or damaged, which no stage can use; true for data sets of the Hub, which are
    not downloaded in order to plan.
    """
    if hub_dataset(source.path) is not None:
        return True
    column, _, _ = source.answer_field.partition(".")
    first = source.model_copy(update={"first": 0, "limit": 1})
    try:
        return any(column in row for _, row in numbered_rows(first, (source.field, column)))
    except DataError:
        return False


def corpus_identity(config: Corpus, cache: DigestCache | None = None) -> dict[str, object]:
    """What decides a corpus beside its table: the text, in order, or the task, and the tokenizer.

    Raises:
        ConfigError: the task does not exist.
        DataError: the tokenizer directory holds no tokenizer.
    """
    source: dict[str, object]
    if config.task is not None:
        source = _task_identity(config.task)
    else:
        found = [list(_matches(pattern, config.suffix)) for pattern in config.text]
        known = all(found) and all(file.is_file() for files in found for file in files)
        files = [file for matched in found for file in matched]
        source = {"sha256": _digest_of_files(None, files, cache) if known else None}
    if config.tokenizer.path is None:
        return source
    if config.tokenizer.path.endswith(GGUF):
        source["tokenizer"] = _digest_of_gguf(config.tokenizer.path, cache or DigestCache())
        return source
    directory = Path(config.tokenizer.path)
    source["tokenizer"] = tokenizer_hash(directory) if directory.is_dir() else None
    return source


def corpus_files(config: Corpus) -> list[Path]:
    """The text files of a corpus, in the order of the patterns and by name within each.

    Raises:
        DataError: a pattern matches nothing.
    """
    files: list[Path] = []
    for pattern in config.text:
        matched = [file for file in _matches(pattern, config.suffix) if file.is_file()]
        if not matched:
            raise DataError(
                f"{pattern}: no such file, or no file ending in `{config.suffix}` in that "
                "directory. Check `corpus.text` and `corpus.suffix`."
            )
        files += matched
    return files


def _matches(pattern: str, suffix: str) -> Iterable[Path]:
    if pattern.startswith(STDLIB):
        pattern = sysconfig.get_path("stdlib") + pattern.removeprefix(STDLIB)
    path = Path(pattern)
    if path.is_dir():
        return sorted(file for file in path.rglob(f"*{suffix}") if file.is_file())
    if any(mark in pattern for mark in _GLOB) and not path.exists():
        root = Path(path.anchor or ".")
        return sorted(root.glob(str(path.relative_to(path.anchor)) if path.anchor else pattern))
    return [path]


def _gguf_identity(table: Derive, cache: DigestCache) -> dict[str, object]:
    """Digest of the GGUF file: what the table says, since the stage checks it, or the file's."""
    return {"sha256": table.sha256 or _digest_of_gguf(table.gguf or "", cache)}


def _digest_of_gguf(pattern: str, cache: DigestCache) -> str | None:
    """Digest of a GGUF file; None where the file or the package that has it is missing."""
    try:
        file = packaged_file(pattern)
    except ConfigError:
        return None
    return cache.sha256(file) if file.is_file() else None


def _task_identity(name: str) -> dict[str, object]:
    return {"task": name, "version": task(name).version}


def _digest_of_files(root: Path | None, files: Iterable[Path], cache: DigestCache | None) -> str:
    """sha256 over the digests of files, in order, with their names relative to `root` if given."""
    cache = cache or DigestCache()
    listed = [
        (file.relative_to(root).as_posix() if root else "", cache.sha256(file)) for file in files
    ]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()
