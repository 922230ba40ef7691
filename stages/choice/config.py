"""Settings of the choice among models. Light: no torch here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from stages.config import StageConfig, reference

if TYPE_CHECKING:
    from stages.config import StageFunction


def other_metric(figures: Iterable[str]) -> str:
    """What to do where a model has none of the figure that decides, but these."""
    usable = [name for name in figures if name.partition("/")[0] != "test"]
    if not usable:
        return "what is measured on a validation split decides: set validation_fraction of the ingestion"
    best = next((name for name in usable if name.endswith("/loss")), usable[0])
    mode = "min" if best.endswith("/loss") else "max"
    return f"try choose: {{metric: {best}, mode: {mode}}}"


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
        if self.metric.endswith("/loss") and self.mode == "max":
            raise ValueError(f"metric={self.metric}: mode=max would choose the highest loss: set mode to min")
        return self

    @classmethod
    def function(cls) -> StageFunction:
        from stages.choice.run import run

        return run
