"""Every objective there is: importing a file makes its objectives known by name."""

from stages.objectives import (  # noqa: F401
    f_divergence,
    lightning,
    likelihood,
    mixture,
    nkd,
    policy_gradient,
    ranking,
    reverse_kl,
    taid,
)
