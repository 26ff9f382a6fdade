"""Files that come with an installed Python package, such as a model."""

import importlib.util
import re
from pathlib import Path

from storage.errors import ConfigError


def packaged_file(pattern: str) -> Path:
    """`{package}/name` as a file of an installed Python package; other paths as they are.

    The package is found without being imported.

    Raises:
        ConfigError: it is not installed.
    """
    named = re.fullmatch(r"\{(\w+)\}/(.+)", pattern)
    if named is None:
        return Path(pattern)
    spec = importlib.util.find_spec(named[1])
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"{pattern}: the Python package {named[1]} is not installed. Install it; for a recipe "
            "that comes with Afterglow, `make env RECIPE=name` does."
        )
    return Path(spec.origin).parent / named[2]
