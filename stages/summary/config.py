"""Settings of summaries. Light: no torch here."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, field_validator, model_validator

from stages.config import StageConfig, reference

if TYPE_CHECKING:
    from stages.config import StageFunction


SEED = re.compile(r"-seed-\d+$")


def group_of(stage: str) -> str:
    """The row that a stage belongs to where nothing else is said: its name without `-seed-N`."""
    return SEED.sub("", stage)


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

    @field_validator("models", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

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
