"""Which processes make the parts of a stage."""

from typing import Annotated, Literal

from pydantic import Field

from stages.table import Positive, Table


class Workers(Table):
    """Parts of a stage are independent: several workers may make them in parallel."""

    executor: Literal["local", "ray"] = "local"
    """`local`: processes of this machine; `ray`: tasks of a Ray cluster (docs/ray.md)."""
    workers: Positive = 1
    """Parallel processes or tasks, each with an engine of its own."""
    cpus: Positive | None = None
    """CPU cores of one worker; default an equal share of this machine, or 1 in a Ray cluster."""
    gpus: Annotated[float, Field(ge=0.0)] | None = None
    """GPUs of one worker; default `tensor_parallel` if there are GPUs. Ray accepts fractions."""

    @property
    def spread(self) -> bool:
        """Whether parts are made outside the process that commits them."""
        return self.workers > 1 or self.executor != "local"
