"""Settings of summaries. Light: no torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, model_validator

from stages.config import StageConfig, reference

if TYPE_CHECKING:
    from stages.config import StageFunction


class SummaryConfig(StageConfig):
    """Means of several models' or evaluations' figures, with deviations. `seeds` of a stage makes one by itself."""

    kind: ClassVar[str] = "summary"
    version: ClassVar[int] = 2
    output: ClassVar[str] = "summary"

    models: tuple[str, ...] = reference(
        ("model", "evaluation"), "stages whose models' or evaluations' figures to take", alias="from"
    )
    groups: tuple[str, ...] = Field(
        (), description="of each of them, the row it belongs to; if absent, its stage's name without -seed-N"
    )
    metrics: tuple[str, ...] = Field(
        (), description="figures to show; if absent, of models those of validation and test, of evaluations all"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.models:
            raise ValueError("from=[]: name the stages to summarise")
        if self.groups and len(self.groups) != len(self.models):
            raise ValueError(f"groups has {len(self.groups)} names for {len(self.models)} stages: give one for each")
        return self

    @classmethod
    def function(cls) -> StageFunction:
        from stages.summary.run import run

        return run
