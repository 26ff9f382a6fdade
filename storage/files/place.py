"""Where things are stored: a path of this machine, or a path on an object store."""

import os
from pathlib import Path

from storage.files.remote import Remote

Place = Path | Remote
"""What can be opened below a store. Local ones are plain paths and cost nothing more."""


def place(text: str | Place) -> Place:
    """The place a text names: `s3://bucket/prefix` and the like, or a path."""
    if not isinstance(text, str):
        return text
    return Remote(text) if "://" in text else Path(text)


def cache_root() -> Path:
    """Directory for what must be on this machine although the store is not.

    `AFTERGLOW_CACHE`, or `afterglow` in the user's cache directory. Holds copies of models, files
    under way to the store, and remembered digests; nothing in it is needed twice.
    """
    named = os.environ.get("AFTERGLOW_CACHE")
    if named:
        return Path(named).absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "afterglow"
