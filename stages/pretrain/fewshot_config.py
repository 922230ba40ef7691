"""Settings of few-shot evaluations during pretraining. Light: no torch or numpy here."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from stages.classifiers.config import ClassifierSettings, ClassSet


class FewshotOnTheWay(ClassifierSettings):
    """Checkpoints are evaluated while training goes on, each by a task with resources of its own."""

    every: int = Field(ge=1, description="updates between evaluations; the last update is always evaluated")
    draws: int = Field(
        3, ge=2, description="random choices of the training images, nested over shots; 3 as in big_vision"
    )
    class_sets: tuple[ClassSet, ...] | None = Field(
        None, description="which classes to tell apart; if absent, all that make sense for this model and data set"
    )
    cpus: float = Field(1, gt=0, description="CPU cores that an evaluation reserves")
    gpus: Literal[0, 1] = Field(0, description="1 computes features on a GPU; 0 on CPUs")
    threads: int = Field(1, ge=1, description="torch threads on a CPU")
    batch: int | None = Field(
        None,
        ge=1,
        description="images per forward pass; if absent 256 on a GPU, and 16 on CPUs, where more slows training",
    )

    @property
    def images_at_once(self) -> int:
        """Images per forward pass."""
        return self.batch or (256 if self.gpus else 16)

    @model_validator(mode="after")
    def _check_policy(self) -> Self:
        if self.regularisation_by == "global_rank":
            raise ValueError(
                "regularisation_by=global_rank compares several data sets, and during pretraining there is one: "
                "take fixed, validation or leave_one_out"
            )
        return self
