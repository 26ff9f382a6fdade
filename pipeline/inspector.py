"""`afterglow inspect SET`: the token inspector of any set, as one HTML file."""

import argparse
import logging
import sys
import webbrowser
from pathlib import Path

from pipeline.execution.units import parse_shards
from stages.job import Input
from storage.errors import UsageError
from storage.files.place import Place
from storage.files.write import replace_file

log = logging.getLogger(__name__)


def cmd_inspect(options: argparse.Namespace) -> dict[str, object]:
    """Write the page of a set, and print where it is.

    Raises:
        UsageError: sizes that are not positive.
        DataError: not a readable set, none with tokens, or a model that cannot be loaded or has
            another tokenizer.
    """
    for name in ("limit", "tokens"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} {value}: give 1 or more")
    from stages.inspection.inspect import Settings, inspect_set
    from stages.inspection.subject import named
    from stages.models.identity import local_directory

    directory: Place = options.set
    only = None if options.only is None else parse_shards(options.only, "--only")
    models = named([local_directory(Input(source)) for source in options.model])
    settings = Settings(limit=options.limit, only=only, tokens=options.tokens, dtype=options.dtype)
    page, figures = inspect_set(directory, models, settings)
    into: Path = options.into or Path(f"inspect-{directory.name}.html")
    replace_file(into, page.encode())
    log.info(
        "%s: %s of %s sequences, the tokens of %s, %.1f MB",
        into,
        figures["read"],
        figures["sequences"],
        figures["shown"],
        len(page) / 1e6,
    )
    sys.stdout.write(f"{into}\n")
    if options.open:
        webbrowser.open(into.resolve().as_uri())
    return {"verb": "inspect", "page": str(into), **figures}
