"""Every weight there is: importing a file makes its weight known by name."""

from stages.weights import (  # noqa: F401
    entropy,
    entropy_gap,
    first,
    length,
    pass_rate,
    position_decay,
    prefix,
    random_share,
    scope,
    teacher_entropy,
    tip,
)
