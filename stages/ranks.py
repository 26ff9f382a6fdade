"""The rank of this process among those that torchrun started. Imports no torch."""

import os
from dataclasses import dataclass

from storage.errors import ConfigError

WORKER = "AFTERGLOW_WORKER"
"""Environment variable of processes that make parts side by side: another one speaks for them."""

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ranks:
    """Rank of a process among those that run one stage together."""

    rank: int = 0
    """Number of this process over all machines."""
    size: int = 1
    """Number of processes."""
    local: int = 0
    """Number of this process on its machine; it takes the GPU of this number."""

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes the set and logs for all."""
        return self.rank == 0


def here() -> Ranks:
    """The rank of this process; 0 of 1 unless a launcher has set all of torchrun's variables.

    Raises:
        ConfigError: the variables are not numbers, or contradict each other.
    """
    if not all(name in os.environ for name in _NEEDED):
        return Ranks()
    found = {name: os.environ.get(name, "0") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    rank, size, local = (int(text) if text.isdecimal() else -1 for text in found.values())
    if not (0 <= rank < size and local >= 0):
        raise ConfigError(
            f"{', '.join(f'{name}={text}' for name, text in found.items())}: the launcher's "
            "variables do not fit together. Start the processes with torchrun, or unset them."
        )
    return Ranks(rank, size, local)
