"""Data sets of the Hub as sources of prompts: `owner/name`, or `hub:owner/name`.

A data set is its commit: planning resolves a revision once, and stages load that commit through
`datasets`, which downloads the files of one configuration. Imports neither torch nor transformers.
"""

from pathlib import Path
from typing import Any

from stages.config.data import PromptSource
from stages.data.prompt_files import known_format, one_split
from stages.models.hub import asking, is_commit, is_hub_id, known_commit
from storage.errors import DataError

PREFIX = "hub:"
"""Marks a Hub id where a directory of that name exists as well."""


def hub_dataset(path: str | None) -> str | None:
    """The Hub id that a path means; None where it means a file or directory.

    `owner/name` means the Hub unless there is such a path or it ends as a file of prompts does.
    """
    if path is None:
        return None
    if path.startswith(PREFIX):
        return path.removeprefix(PREFIX)
    if not is_hub_id(path) or known_format(path) or Path(path).exists():
        return None
    return path


def commit_of(name: str, revision: str, *, ask: bool) -> str | None:
    """The commit that a revision of a data set stands for; None: not known on this machine.

    Args:
        name: Hub id.
        revision: Branch, tag or commit.
        ask: The Hub may be asked.

    Raises:
        ConfigError: the Hub has no such data set or revision.
        RetryError: the Hub cannot be reached.
    """
    if is_commit(revision):
        return revision
    if not ask:
        return known_commit(name, revision, "dataset")
    from huggingface_hub import snapshot_download

    with asking(name, revision, "data set", "Check `prompts.path`."):
        made = snapshot_download(  # the smallest that remembers the commit of a revision
            name, repo_type="dataset", revision=revision, allow_patterns=["README.md"]
        )
    return Path(made).name


def load_hub(name: str, source: PromptSource) -> Any:
    """The wanted split of a data set of the Hub, as a `datasets.Dataset`.

    Raises:
        DataError: it has no such configuration or split, or needs one to be named; or it cannot be
            loaded.
        ConfigError, RetryError: as `commit_of`.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    commit = commit_of(name, source.revision, ask=True)
    try:
        found = datasets.load_dataset(name, source.config, revision=commit)
    except (OSError, ValueError, DatasetsError) as error:
        said = " ".join(str(error).split())
        raise DataError(
            f"{name}: cannot be loaded from the Hub ({said}). Check `prompts.path`, "
            "`prompts.config` and `prompts.revision`."
        ) from error
    return one_split(found, name, source.split)
