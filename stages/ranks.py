"""Which of several processes this one is, as `torchrun` tells it. Imports no torch."""

import os
from dataclasses import dataclass

from storage.errors import ConfigError

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ranks:
    """The place of a process among those that do one stage together."""

    rank: int = 0
    """Over all machines."""
    size: int = 1
    """Number of processes."""
    local: int = 0
    """Number of this process on its machine; it takes the GPU of this number."""

    @property
    def first(self) -> bool:
        """Whether this process writes, and speaks, for all."""
        return self.rank == 0


def here() -> Ranks:
    """The place of this process; alone unless a launcher has set all of torchrun's variables.

    Raises:
        ConfigError: the variables are no numbers that fit together.
    """
    if not all(name in os.environ for name in _NEEDED):
        return Ranks()
    found = {name: os.environ.get(name, "0") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    rank, size, local = (int(text) if text.isdecimal() else -1 for text in found.values())
    if not (0 <= rank < size and local >= 0):
        raise ConfigError(
            f"{', '.join(f'{name}={text}' for name, text in found.items())}: the launcher's "
            "variables do not fit together. Start the processes with torchrun, or clear them."
        )
    return Ranks(rank, size, local)
