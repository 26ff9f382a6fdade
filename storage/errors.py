"""Errors, and the exit code with which each one ends the process.

Every message says what happened, where, and how to fix it. The classes also inherit the standard
class they stand for, so `except ValueError` in a user's script works as expected.
"""

from collections.abc import Iterable

RESTORE = "Restore it from a copy, or delete the set and run its stage again."
"""What to do about a damaged or missing file of a set."""


class AfterglowError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command returns."""

    exit_code = 1


class UsageError(AfterglowError, ValueError):
    """The command line cannot be understood."""

    exit_code = 2


class DataError(AfterglowError, ValueError):
    """Input data, a stored set or a model directory is wrong; running again will not help."""

    exit_code = 65


class DamageError(DataError):
    """A stored file is not what was written.

    Attributes:
        result: Printed as the command's last line, so that a caller can repair the file.
    """

    def __init__(self, path: object, message: str) -> None:
        super().__init__(message)
        self.result = {"damaged": str(path)}


class EngineError(AfterglowError, RuntimeError):
    """A model or an inference engine produced unusable output."""

    exit_code = 65


class SequenceError(DataError, EngineError):
    """Sequences that cannot be used, whatever is done with the others.

    Attributes:
        seq_ids: Their ids.
    """

    def __init__(self, seq_ids: Iterable[int], message: str) -> None:
        super().__init__(message)
        self.seq_ids = tuple(int(seq_id) for seq_id in seq_ids)


class RetryError(AfterglowError, OSError):
    """The environment failed (disk full, file vanished); run again once that is fixed."""

    exit_code = 75


class ConfigError(AfterglowError, ValueError):
    """The configuration is wrong."""

    exit_code = 78
