"""The Hugging Face Hub: what names of models look like, and what of them is on this machine.

`download` asks the Hub; all else reads the local cache alone.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.errors import ConfigError, RetryError

ALLOW_PICKLED = "AFTERGLOW_PICKLED_WEIGHTS"
"""Environment variable that lets pickled weights be loaded."""

_WEIGHTS = ("*.safetensors",)
_PICKLED = ("pytorch_model*.bin",)
_BESIDE = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")
"""Configuration and tokenizer, whatever its family."""
_IGNORED = (
    "consolidated*.safetensors",
    *(f"*/*{suffix}" for suffix in (".safetensors", ".bin", ".json", ".model", ".txt")),
)
"""Second copies of the weights, and whatever lies in sub-directories (`original/`, `onnx/`)."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(name: str) -> bool:
    """Whether a model of the Hub could be called so (owner/name)."""
    return _HUB_ID.fullmatch(name) is not None


def is_commit(revision: str) -> bool:
    """Whether a revision is a commit itself, so that there is nothing to resolve."""
    return _COMMIT.fullmatch(revision) is not None


def known_commit(name: str, revision: str, kind: str = "model") -> str | None:
    """The commit that a revision stood for when it was last downloaded; None: never."""
    remembered = _cache(name, kind) / "refs" / revision
    return remembered.read_text().strip() if remembered.exists() else None


@contextmanager
def asking(name: str, revision: str, kind: str, mend: str) -> Iterator[None]:
    """Tell the errors of a question to the Hub apart.

    Args:
        name: Hub id.
        revision: Branch, tag or commit.
        kind: "model" or "data set".
        mend: What to look at when there is none, a sentence.

    Raises:
        ConfigError: the Hub has no such thing, or not for this user.
        RetryError: the Hub cannot be reached.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except (HfHubHTTPError, HFValidationError) as error:
        raise ConfigError(
            f"{name}: no such path, and the Hub has no such {kind} at revision `{revision}`, or "
            f"not for you ({str(error).splitlines()[0]}). {mend}"
        ) from error
    except Exception as error:  # the errors of its HTTP library, which differs between versions
        raise RetryError(
            f"{name}: no such path, and not a {kind} of the Hub known here; it cannot be reached "
            f"({str(error).splitlines()[0]}). {mend}"
        ) from error


def cached_directory(name: str, revision: str) -> Path | None:
    """Directory of the files of a model that are on this machine, perhaps not all; None: none."""
    if not is_hub_id(name):
        return None
    commit = known_commit(name, revision) or revision
    directory = _cache(name) / "snapshots" / commit
    return directory if directory.is_dir() else None


def download(name: str, revision: str) -> Path:
    """Directory of the files of a model that are loaded, fetched where they are not here yet.

    Repositories hold weights in several formats: of these the ones in safetensors are taken, and
    pickled ones only where there are no others and they are allowed (`ALLOW_PICKLED`).

    Raises:
        HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError: it is unavailable.
    """
    from huggingface_hub import snapshot_download

    asked = {"revision": revision, "ignore_patterns": list(_IGNORED)}
    found = Path(snapshot_download(name, allow_patterns=[*_WEIGHTS, *_BESIDE], **asked))
    if not any(found.glob("*.safetensors")) and os.environ.get(ALLOW_PICKLED) == "1":
        found = Path(snapshot_download(name, allow_patterns=[*_PICKLED, *_BESIDE], **asked))
    return found


def _cache(name: str, kind: str = "model") -> Path:
    from huggingface_hub import constants, file_download

    folder = file_download.repo_folder_name(repo_id=name, repo_type=kind)
    return Path(constants.HF_HUB_CACHE) / folder
