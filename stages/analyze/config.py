"""Settings of the figures of a network. Light: no torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, model_validator

from stages.config import StageConfig, placement, reference
from stages.data.config import DataConfig

if TYPE_CHECKING:
    from stages.config import StageFunction


class AnalyzeConfig(StageConfig):
    """What a trained network looks at: attention distance, entropy and rollout, filters, position embeddings."""

    kind: ClassVar[str] = "analyze"
    version: ClassVar[int] = 1
    output: ClassVar[str] = "analysis"

    data: str = reference("dataset", "stage whose images to show the network")
    model: str = reference("model", "stage whose network to look at", alias="from")
    split: str = Field("test", min_length=1, description="split that the images are drawn from")
    images: int = Field(128, ge=1, description="images to average over; the paper has 128")
    examples: int = Field(8, ge=1, le=32, description="of these, how many the pictures of rollout show")
    untrained: bool = Field(True, description="the same network untrained beside it")
    renormalise: bool = Field(
        True, description="attention to patches sums to 1 in the distance, once the class token is left out"
    )

    batch: int = placement(8, "images per forward pass", ge=1)
    threads: int = placement(2, "torch threads", ge=1)
    input: DataConfig = Field(default_factory=DataConfig, description="where shards are cached, how images are resized")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.examples > self.images:
            raise ValueError(f"examples={self.examples} is more than images={self.images}: examples are among them")
        return self

    @classmethod
    def function(cls) -> StageFunction:
        from stages.analyze.run import run

        return run


def no_attention(title: str, source: str) -> str:
    """What is said of a network that there is nothing of to look at."""
    return f"{title}, the network of '{source}', is a ResNet, without attention: take a Vision Transformer or a hybrid"
