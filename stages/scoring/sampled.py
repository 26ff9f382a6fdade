"""Records of kind `sampled`: no entries."""

from typing import Any

from stages.scoring.drawn import LogitRows
from stages.scoring.sampler_kernels import open_rows


def on_cpu(rows: LogitRows, *_: Any) -> dict[str, Any]:
    """No columns beside those of all kinds."""
    open_rows(rows)
    return {}


def on_gpu(*_: Any) -> dict[str, Any]:
    """The same."""
    return {}
