"""Settings of supervised pretraining. Light: no torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, model_validator

from stages.config import reference
from stages.models.config import ModelConfig
from stages.training.config import TrainingConfig

if TYPE_CHECKING:
    from stages.config import StageFunction


class PretrainConfig(TrainingConfig):
    """Train a Vision Transformer on a data set's `train` split, from scratch or from another stage's weights."""

    kind: ClassVar[str] = "pretrain"
    version: ClassVar[int] = 1
    output: ClassVar[str] = "model"

    data: str = reference("dataset", "stage whose data set to train on")
    init_from: str | None = reference("model", "stage whose weights to begin with, head and all", default=None)
    model: ModelConfig = Field(description="the network")
    resolution: int = Field(224, gt=0, description="side of the square training images in pixels")

    @model_validator(mode="after")
    def _check_grid(self) -> Self:
        self.model.grid(self.resolution)
        if self.model.in_channels != 3:
            raise ValueError(f"model.in_channels={self.model.in_channels}: images are read as RGB, so it must be 3")
        return self

    @classmethod
    def function(cls) -> StageFunction:
        from stages.pretrain.run import run

        return run
