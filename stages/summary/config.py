"""Settings of summaries. Light: no torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, model_validator

from stages.config import StageConfig, reference

if TYPE_CHECKING:
    from stages.config import StageFunction


class SummaryConfig(StageConfig):
    """Means of several models' final figures, with their standard errors. `seeds` of a stage makes one by itself."""

    kind: ClassVar[str] = "summary"
    version: ClassVar[int] = 1
    output: ClassVar[str] = "summary"

    models: tuple[str, ...] = reference("model", "stages whose models' figures to take", alias="from")
    groups: tuple[str, ...] = Field(
        (), description="of each model, the row it belongs to; if absent, its stage's name without -seed-N"
    )
    metrics: tuple[str, ...] = Field(
        (), description="final figures to show; if absent, all of the validation and test splits"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.models:
            raise ValueError("from=[]: name the stages to summarise")
        if self.groups and len(self.groups) != len(self.models):
            raise ValueError(f"groups has {len(self.groups)} names for {len(self.models)} models: give one for each")
        return self

    @classmethod
    def function(cls) -> StageFunction:
        from stages.summary.run import run

        return run
