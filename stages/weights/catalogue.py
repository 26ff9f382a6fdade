"""Every weight there is: importing a file makes its weight known by name."""

from stages.weights import (  # noqa: F401
    entropy,
    pass_rate,
    prefix,
    random_share,
)
