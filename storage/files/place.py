"""Where things are stored: a path of this machine, or a path on an object store."""

import os
from pathlib import Path

from storage.files.remote import Remote

Place = Path | Remote
"""A path on this machine or on an object store."""


def place(text: str | Place) -> Place:
    """The path that `text` names: on an object store (`s3://bucket/prefix`) or on this machine."""
    if not isinstance(text, str):
        return text
    return Remote(text) if "://" in text else Path(text)


def cache_root() -> Path:
    """Directory for files that must be local although the store is remote.

    `AFTERGLOW_CACHE`, or `afterglow` in the user's cache directory. Holds copies of models, files
    under way to the store, and remembered digests; all of it can be made again.
    """
    named = os.environ.get("AFTERGLOW_CACHE")
    if named:
        return Path(named).absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "afterglow"
