"""Runs all checks; `plan`, `run`, `units` and `check` call it, and thereby every scheduler."""

from collections.abc import Callable, Iterable, Iterator

from pipeline.planning.plan import Planned
from pipeline.preflight import engines, models, prompts, resources
from pipeline.preflight.finding import Finding
from pipeline.preflight.scope import Scope
from storage.store import Store

CHECKS: tuple[Callable[[Scope], Iterator[Finding]], ...] = (
    models.check_presence,
    models.check_gguf,
    prompts.check_files,
    engines.check_vision_classes,
    resources.check_memory,
    resources.check_disk,
)
"""All checks, in the order of the table."""


def preflight(
    planned: Iterable[Planned],
    store: Store,
    later: Iterable[Planned] = (),
    *,
    elsewhere: bool = False,
) -> list[Finding]:
    """What can be said of a plan before anything runs.

    Sets that are committed are not looked at again.

    Args:
        planned: What is to be made, and what that needs.
        store: Where the sets are.
        later: Nodes that read what is to be made. What is wrong with them is refused as well; that
            something they need is not there yet is a note.
        elsewhere: Other machines may make them, so that memory and disk of this one decide nothing.
    """
    scope = Scope(planned, store, elsewhere=elsewhere)
    findings = [one for check in CHECKS for one in check(scope)]
    scope = Scope(later, store, later=True)
    beside = [one for check in CHECKS for one in check(scope)]
    return list(dict.fromkeys([*findings, *beside]))
