"""Settings of a mixture of data sets. Light: no torch or numpy here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from stages.config import StageConfig, reference

if TYPE_CHECKING:
    from stages.config import StageFunction

Weight = Annotated[float, Field(gt=0)]


class MixtureConfig(StageConfig):
    """Several data sets as one: training reads their `train` splits in given shares, no image is copied.

    The other splits hold the samples of all of them, each once.
    """

    kind: ClassVar[str] = "mixture"
    version: ClassVar[int] = 1
    output: ClassVar[str] = "dataset"

    data: tuple[str, ...] = reference("dataset", "stages whose data sets are mixed")
    weights: tuple[Weight, ...] | None = Field(
        None, description="shares of the samples that training reads, in any unit; in proportion to sizes if absent"
    )
    classes: Literal["by_name", "apart"] = Field(
        "by_name", description="classes of one name are one class, or every data set keeps its own"
    )
    name: str | None = Field(None, description="name of the data set; the stages' joined by + if absent")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.data) < 2 or len(set(self.data)) < len(self.data):
            raise ValueError(f"data={list(self.data)}: expected at least two stages, each named once")
        if self.weights is not None and len(self.weights) != len(self.data):
            raise ValueError(f"weights={list(self.weights)}: expected {len(self.data)} numbers, one for each of data")
        return self

    @classmethod
    def function(cls) -> StageFunction:
        from stages.mixture.run import run

        return run
