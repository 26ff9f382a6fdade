"""Logging to stderr: lines for people, or JSON with `AFTERGLOW_LOG=json`."""

import json
import logging
import os
import sys
import time


class _Human(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        return f"{time.strftime('%H:%M:%S')} {level}{record.getMessage()}"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        level, message = record.levelname.lower(), record.getMessage()
        found = {"time": record.created, "level": level, "logger": record.name, "message": message}
        return json.dumps(found)


def configure(level: str = "info") -> None:
    """Send our own records of `level` and above to stderr, other libraries' warnings too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if os.environ.get("AFTERGLOW_LOG") == "json" else _Human())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("pipeline", "stages", "storage"):
        logging.getLogger(name).setLevel(level.upper())
