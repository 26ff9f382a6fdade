"""What the checks look at: the nodes that are still to be made."""

from collections.abc import Iterable
from functools import cached_property

from pipeline.planning.plan import Planned
from storage.store import Store


class Scope:
    """Nodes to be checked, and what is known of what they read.

    Args:
        planned: Nodes; those that are committed are left out.
        store: Where their sets are.
        later: The nodes follow what is about to run.
        elsewhere: Other machines may make them.
    """

    def __init__(
        self,
        planned: Iterable[Planned],
        store: Store,
        *,
        later: bool = False,
        elsewhere: bool = False,
    ) -> None:
        self.store = store
        self.later = later
        self.elsewhere = elsewhere or later
        self.planned = list(planned)

    @cached_property
    def todo(self) -> list[Planned]:
        """Nodes without a committed set, in order."""
        return [one for one in self.planned if one.manifest(self.store) is None]
