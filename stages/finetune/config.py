"""Settings of fine-tuning. Light: no torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from stages.config import added, reference
from stages.training.config import TrainingConfig

if TYPE_CHECKING:
    from stages.config import StageFunction


class FinetuneConfig(TrainingConfig):
    """Go on from a pretrained model at another resolution, with a fresh head over all classes."""

    kind: ClassVar[str] = "finetune"
    version: ClassVar[int] = 1
    output: ClassVar[str] = "model"

    data: str = reference("dataset", "stage whose data set to fine-tune on")
    model: str = reference("model", "stage whose model to start from", alias="from")
    resolution: int = Field(384, gt=0, description="side of the square images in pixels")
    resampling: Literal["scipy_bilinear", "bicubic", "bicubic_antialias"] = Field(
        "scipy_bilinear", description="how position embeddings are resampled in 2-D; the first is the paper's"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout of the network while fine-tuning")
    train_splits: tuple[Literal["train", "validation"], ...] = added(
        ("train",), "splits to train on, beside the held-out classes; those are not evaluated"
    )
    stochastic_depth: float = added(
        0.0, "probability that an image skips the last block while fine-tuning; those before it less", ge=0, lt=1
    )
    optimizer: Literal["adamw", "sgd"] = Field("sgd", description="the paper's is SGD with momentum")
    lr: float = Field(0.01, gt=0, description="peak learning rate")

    @model_validator(mode="after")
    def _check_splits(self) -> Self:
        if "train" not in self.train_splits or len(set(self.train_splits)) < len(self.train_splits):
            raise ValueError(f"train_splits={list(self.train_splits)}: expected [train] or [train, validation]")
        if self.evaluate_every and "validation" in self.train_splits:
            raise ValueError(
                f"evaluate_every={self.evaluate_every} needs the validation split, which train_splits trains on: "
                "set it to 0, or take validation away"
            )
        return self

    @classmethod
    def function(cls) -> StageFunction:
        from stages.finetune.run import run

        return run
