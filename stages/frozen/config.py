"""What every stage that asks a frozen network for features has to know. Light: no torch here."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from stages.config import StageConfig, added, placement
from stages.data.config import DataConfig

Baseline = Literal["untrained", "pixels"]


class ForwardConfig(StageConfig):
    """How a frozen network is shown all images of a data set."""

    says_nothing: ClassVar[frozenset[str]] = frozenset(f"input.{field}" for field in DataConfig.of_training)

    batch: int = placement(256, "images per forward pass", ge=1)
    threads: int = placement(2, "torch threads on a CPU", ge=1)
    images_per_task: int = placement(
        10_000, "images that one task looks at; where one is enough, the driver does it itself", ge=1
    )
    cpus_per_task: float = placement(1, "CPU cores that each task reserves", gt=0)
    gpus_per_task: Literal[0, 1] = placement(0, "1 computes on GPUs, one for each task; 0 on CPUs")
    input: DataConfig = Field(default_factory=DataConfig, description="how images come to the network's resolution")


class FrozenConfig(ForwardConfig):
    """Which features of the images of a data set, and how they are computed."""

    baselines: tuple[Baseline, ...] = Field(("untrained", "pixels"), description="features to compare with")
    resolution: int | None = Field(None, gt=0, description="side of the images in pixels; the model's if absent")
    stored_as: Literal["float32", "float16"] = added("float32", "numbers that the features are stored as")
