"""Table of `derive`: models that the recipe takes from a file or makes of another model."""

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from stages.config.stage import StageTable
from stages.table import BY_CONTENT, NOT_IN_KEY

LayerIndex = Annotated[int, Field(ge=0)]


class Derive(StageTable):
    """A model made without training: read from a GGUF file, or another model with fewer layers.

    Other tables name it `derive:<name>`.
    """

    presence = "by name"

    gguf: Annotated[str | None, BY_CONTENT] = None
    """A GGUF file; its weights are dequantised. `{package}/file` is a file of an installed Python
    package."""
    sha256: Annotated[str | None, NOT_IN_KEY, Field(pattern="^[0-9a-f]{64}$")] = None
    """Digest that the GGUF file must have; with it, keys are known before the file is there."""
    prune: Annotated[str | None, BY_CONTENT] = None
    """The model to take layers from: `teacher`, `derive:<name>` or `pretrain:<name>` of a table
    above this one, a directory or a Hub id."""
    layers: tuple[LayerIndex, ...] = ()
    """Layers that `prune` keeps, counted from 0, in ascending order."""

    seed: ClassVar[int] = 0
    """Nothing is random: runs that differ in the recipe's seed share the model."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.gguf is None) == (self.prune is None):
            raise ValueError("give exactly one of `gguf` (a file) and `prune` (another model)")
        if self.prune is not None and not self.layers:
            raise ValueError("`prune` needs `layers`, the layers to keep")
        if list(self.layers) != sorted(set(self.layers)):
            raise ValueError("`layers` must ascend, each at most once")
        if self.gguf is not None and self.layers:
            raise ValueError("`layers` belongs to `prune`; a second table can prune this model")
        if self.prune is not None and self.sha256:
            raise ValueError("`sha256` belongs to `gguf`")
        return self

    def sources(self) -> dict[str, str | None]:
        """The model to prune, if any."""
        return {"model": self.prune}
