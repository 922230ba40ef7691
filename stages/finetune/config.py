"""Settings of fine-tuning. Light: no torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from stages.config import reference
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
    optimizer: Literal["adamw", "sgd"] = Field("sgd", description="the paper's is SGD with momentum")
    lr: float = Field(0.01, gt=0, description="peak learning rate")

    @classmethod
    def function(cls) -> StageFunction:
        from stages.finetune.run import run

        return run
