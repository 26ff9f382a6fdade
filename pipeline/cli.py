"""The `afterglow` command.

With `--json`, and wherever stdout is not a terminal, the last line on stdout is one JSON object for
programs; messages for people go to stderr. Exit codes: 0 done, 2 usage, 65 bad data, 75 try again,
78 bad configuration.
"""

import argparse
import json
import logging
import os
import sys
import time
import traceback
from pathlib import Path

from pipeline import logs
from pipeline.arguments import parser
from stages.ranks import WORKER, here
from storage.errors import AfterglowError, RetryError

log = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parser().parse_args(argv)
    logs.configure(options.log_level)
    try:
        from pipeline import verbs  # not at the top: `--help` should cost nothing

        first = here().first
        if not first:
            logs.configure("error")  # rank 0 logs everything else
        result = getattr(verbs, f"cmd_{options.verb}")(options)
    except AfterglowError as error:
        _print_result(options, getattr(error, "result", None))
        return _report(str(error), error.exit_code)
    except KeyboardInterrupt as error:
        if getattr(error, "reported", False) or WORKER in os.environ:
            return RetryError.exit_code
        return _report(
            "interrupted; finished parts and checkpoints are kept, run the same command again",
            RetryError.exit_code,
        )
    except Exception:
        if "TORCHELASTIC_ERROR_FILE" not in os.environ:
            raise
        return _report(traceback.format_exc(), 1)
    if first:
        _print_result(options, result)
    return 0


def _report(message: str, code: int) -> int:
    """Log why the command failed; under torchelastic, leave it to the launcher, which logs once."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file is None:
        log.error("%s", message)
    else:
        from storage.files.write import replace_file

        found = {"message": message, "timestamp": int(time.time()), "exit_code": code}
        replace_file(Path(file), json.dumps(found).encode())  # SIGTERM may come at any time
    return code


def _print_result(options: argparse.Namespace, result: dict[str, object] | None) -> None:
    """The last line, for programs; an error that a program can repair has one too."""
    if result is not None and (options.json or not sys.stdout.isatty()):
        sys.stdout.write(json.dumps(result) + "\n")
