"""Settings of few-shot evaluation. Light: no torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from stages.config import StageConfig, placement, reference
from stages.data.config import DataConfig

if TYPE_CHECKING:
    from stages.config import StageFunction

ClassSet = Literal["all", "seen", "held_out"]


class FewshotConfig(StageConfig):
    """Regularised least squares from frozen features onto {-1, 1}, for a few images of each class."""

    kind: ClassVar[str] = "fewshot"
    version: ClassVar[int] = 1
    output: ClassVar[str] = "evaluation"

    data: str = reference("dataset", "stage whose data set to evaluate on")
    model: str = reference("model", "stage whose model gives the features", alias="from")
    shots: tuple[int, ...] = Field((1, 5, 10, 25), min_length=1, description="training images of each class")
    draws: int = Field(20, ge=2, description="random choices of the training images, nested over shots")
    regularisation: float = Field(1024.0, gt=0, description="lambda; big_vision's is 2^10")
    class_sets: tuple[ClassSet, ...] | None = Field(
        None, description="which classes to tell apart; if absent, all that make sense for this model and data set"
    )
    baselines: tuple[Literal["untrained", "pixels"], ...] = Field(
        ("untrained", "pixels"), description="features to compare with"
    )
    resolution: int | None = Field(None, gt=0, description="side of the images in pixels; the model's if absent")

    batch: int = placement(256, "images per forward pass", ge=1)
    threads: int = placement(2, "torch threads on a CPU", ge=1)
    input: DataConfig = Field(default_factory=DataConfig, description="where shards are cached")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(shots < 1 for shots in self.shots) or len(set(self.shots)) != len(self.shots):
            raise ValueError(f"shots={self.shots} must be different numbers of at least 1, for example (1, 5, 10, 25)")
        return self

    @classmethod
    def function(cls) -> StageFunction:
        from stages.fewshot.run import run

        return run
