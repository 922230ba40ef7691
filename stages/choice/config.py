"""Settings of the choice among models. Light: no torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from stages.config import StageConfig, reference

if TYPE_CHECKING:
    from stages.config import StageFunction


class ChoiceConfig(StageConfig):
    """The best of several models by one of their final figures. A sweep makes one of these by itself."""

    kind: ClassVar[str] = "choice"
    version: ClassVar[int] = 1
    output: ClassVar[str] = "model"

    models: tuple[str, ...] = reference("model", "stages whose models to choose from", alias="from")
    metric: str = Field("validation/accuracy", description="final figure that decides; of equal ones the first wins")
    mode: Literal["max", "min"] = Field("max", description="whether the highest or the lowest is best")

    @model_validator(mode="after")
    def _check_metric(self) -> Self:
        if not self.models:
            raise ValueError("from=[]: name the stages to choose from")
        if self.metric.partition("/")[0] == "test":
            raise ValueError(f"metric={self.metric}: choosing by the test split would spoil it: take validation/…")
        return self

    @classmethod
    def function(cls) -> StageFunction:
        from stages.choice.run import run

        return run
