"""Models of the Hugging Face Hub: what their names look like, and what of them is on this machine.

Reads the local cache alone; asks nobody.
"""

import re
from pathlib import Path

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(name: str) -> bool:
    """Whether a model of the Hub could be called so (owner/name)."""
    return _HUB_ID.fullmatch(name) is not None


def known_commit(name: str, revision: str, kind: str = "model") -> str | None:
    """The commit that a revision stood for when it was last downloaded; None: never."""
    remembered = _cache(name, kind) / "refs" / revision
    return remembered.read_text().strip() if remembered.exists() else None


def cached_directory(name: str, revision: str) -> Path | None:
    """Directory of the files of a model that are on this machine, perhaps not all; None: none."""
    if not is_hub_id(name):
        return None
    commit = known_commit(name, revision) or revision
    directory = _cache(name) / "snapshots" / commit
    return directory if directory.is_dir() else None


def _cache(name: str, kind: str = "model") -> Path:
    from huggingface_hub import constants, file_download

    folder = file_download.repo_folder_name(repo_id=name, repo_type=kind)
    return Path(constants.HF_HUB_CACHE) / folder
