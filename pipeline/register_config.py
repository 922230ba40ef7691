"""Which of a workflow's models becomes a version of a registered model, as its file says it. Light."""

from __future__ import annotations

import re

from pydantic import Field, field_validator, model_validator

from stages.config import Config

NAME = r"^[A-Za-z0-9][A-Za-z0-9_. -]{0,199}$"
LOWER = ("loss", "calibration_error")
"""What figures are called of which the lower one is the better."""


class ChampionConfig(Config):
    """By which figure the alias `champion` moves to the best version."""

    metric: str = Field(
        description="a figure as MLflow has it on the workflow's run: its stage and its name, finetune/test/accuracy"
    )
    higher_is_better: bool | None = Field(
        default=None, description="whether the highest is the best; if absent, unless it is a loss or an error"
    )

    @field_validator("metric")
    @classmethod
    def _check_metric(cls, metric: str) -> str:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*(/[A-Za-z0-9_.-]+)+", metric):
            raise ValueError(f"got {metric!r}, expected a stage and its figure, for example finetune/test/accuracy")
        return metric

    @model_validator(mode="after")
    def _check_direction(self) -> ChampionConfig:
        if self.higher_is_better and self.metric.endswith(LOWER):
            raise ValueError(
                f"metric={self.metric}: higher_is_better=true would take the worst for the best: leave it out"
            )
        return self

    @property
    def higher(self) -> bool:
        """Whether the highest figure is the best."""
        return not self.metric.endswith(LOWER) if self.higher_is_better is None else self.higher_is_better

    @property
    def stage(self) -> str:
        """The stage whose figure it is."""
        return self.metric.partition("/")[0]


class RegisterConfig(Config):
    """A stage's model as a version of a registered model in MLflow, once the workflow is done."""

    name: str = Field(description="the registered model's name in MLflow")
    stage: str = Field(alias="from", description="stage whose model it is; one with classes")
    champion: ChampionConfig | None = Field(default=None, description="the rule of the alias champion; none moves none")

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not re.fullmatch(NAME, name):
            raise ValueError(f"got {name!r}, expected a letter or a digit, then letters, digits, blanks, _, . and -")
        return name
