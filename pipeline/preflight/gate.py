"""Runs all checks; `plan`, `run`, `units` and `check` call it, and thereby every scheduler."""

from collections.abc import Callable, Iterable, Iterator

from pipeline.planning.plan import Planned
from pipeline.preflight import (
    endings,
    engines,
    lengths,
    models,
    objectives,
    prompts,
    resources,
    sampling,
    templates,
    weights,
)
from pipeline.preflight.finding import Finding
from pipeline.preflight.scope import Scope
from storage.store import Store

CHECKS: tuple[Callable[[Scope], Iterator[Finding]], ...] = (
    models.check_presence,
    models.check_gguf,
    models.check_tokenizers,
    weights.check_weights_usable,
    prompts.check_files,
    engines.check_vision_classes,
    prompts.check_rendering,
    templates.check_teacher_template,
    endings.check_ends,
    lengths.check_writers,
    lengths.check_readers,
    sampling.check_repeats,
    sampling.check_holdout,
    objectives.check_contract,
    objectives.check_outcomes,
    objectives.check_likelihood,
    resources.check_memory,
    resources.check_disk,
)
"""All checks, in the order of the table."""


def preflight(
    planned: Iterable[Planned],
    store: Store,
    later: Iterable[Planned] = (),
    beside: Iterable[Planned] = (),
    *,
    elsewhere: bool = False,
    ready: bool = False,
) -> list[Finding]:
    """What can be said of a plan before anything runs.

    Sets that are committed are not looked at again.

    Args:
        planned: What is to be made, and what that needs.
        store: Where the sets are.
        later: Nodes that read what is to be made. What is wrong with them is refused as well; that
            something they need is not there yet is a note.
        beside: Nodes that these read, and that are not looked at.
        elsewhere: Other machines may make them, so that memory and disk of this one decide nothing.
        ready: They are about to run: data sets of the Hub may be downloaded.
    """
    planned, later = list(planned), list(later)
    known = [*beside, *planned, *later]
    now = Scope(planned, store, known, elsewhere=elsewhere, ready=ready)
    then = Scope(later, store, known, later=True, ready=ready)
    found = [one for scope in (now, then) for check in CHECKS for one in check(scope)]
    return list(dict.fromkeys(found))
