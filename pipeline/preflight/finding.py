"""What a check says, and what becomes of it."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from storage.errors import AfterglowError, ConfigError, DataError, RetryError

log = logging.getLogger(__name__)

_BY_WEIGHT = (DataError, ConfigError, RetryError)
"""Errors by what the exit code should say where several things are refused."""


@dataclass(frozen=True)
class Finding:
    """One line of `afterglow check`."""

    level: Literal["ok", "note", "refused"]
    """`note`: runs, but its owner should know. `refused`: `run` and `units` stop."""
    subject: str
    """What was looked at: a table, a model, a prompt file."""
    message: str
    """What was found."""
    mend: str = ""
    """How to mend it, as a sentence."""
    error: type[AfterglowError] = ConfigError
    """What `run` raises if this is refused."""

    def to_json(self) -> dict[str, str]:
        """A JSON-ready dictionary."""
        return {
            "level": self.level,
            "subject": self.subject,
            "message": self.message,
            "mend": self.mend,
        }

    def __str__(self) -> str:
        return " ".join(f"{self.subject}: {self.message}. {self.mend}".split())


def refuse(findings: list[Finding]) -> list[Finding]:
    """Raise if something is refused; returns the findings.

    Raises:
        DataError, ConfigError, RetryError: listing all that is refused.
    """
    refused = [one for one in findings if one.level == "refused"]
    if not refused:
        return findings
    kinds = [kind for kind in _BY_WEIGHT if any(issubclass(one.error, kind) for one in refused)]
    lines = [str(one) for one in refused]
    if len(lines) > 1:
        lines = [f"{len(lines)} things keep this from running:", *(f"  - {one}" for one in lines)]
    raise kinds[0]("\n".join(lines))


def log_notes(findings: Iterable[Finding]) -> None:
    """Log what is not ok."""
    for one in findings:
        if one.level != "ok":
            log.warning("%s: %s", "note" if one.level == "note" else "would be refused", one)


def finding_lines(findings: Iterable[Finding]) -> list[str]:
    """The table of `afterglow check`, with how to mend below each line."""
    rows = list(findings)
    width = max((len(one.subject) for one in rows), default=0)
    lines: list[str] = []
    for one in rows:
        lines.append(f"{one.level:<8}{one.subject.ljust(width)}  {one.message}")
        if one.mend:
            lines.append(" " * (10 + width) + f"-> {one.mend}")
    return lines or ["ok      everything is made already"]
