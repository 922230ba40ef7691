"""Settings of reading and augmenting images. Light: no torch or numpy here."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from cluster.machine import cores
from stages.config import Config, placement

MOST_THREADS = 16
"""That a worker decodes with where nobody says how many: they feed more than a GPU takes, and idle else."""


class EvaluationResize(Config):
    """How images for evaluation come to the network's resolution R; `evaluation.py` says what each way does."""

    method: Literal["resize", "resize_then_crop", "resize_small_then_crop"] = Field(
        default="resize", description="whole image to R × R; or both sides, or the shorter one, to `size` and cropped"
    )
    size: int | None = Field(default=None, ge=1, description="side that the central crop is cut from, in pixels")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.method == "resize" and self.size is not None:
            raise ValueError(f"size={self.size} says nothing for method=resize, which does not crop: leave it out")
        if self.method != "resize" and self.size is None:
            raise ValueError(f"method={self.method} needs size, the side before the crop, for example 256 for 224")
        return self

    def check(self, resolution: int) -> None:
        """Raises ValueError where a crop of this resolution is larger than what it is cut from."""
        if self.size is not None and self.size < resolution:
            raise ValueError(
                f"size={self.size} is less than resolution={resolution}: "
                f"take a larger one, for example {resolution * 8 // 7}, or method=resize"
            )


class RandAugment(Config):
    """Random operations on training images (Cubuk et al., 2020), as big_vision's AugReg recipes use them."""

    layers: int = Field(default=2, ge=1, description="operations that an image goes through")
    magnitude: float = Field(default=10, ge=0, le=30, description="strength of each")


class DataConfig(Config):
    """Order, augmentation (paper's code: `input_pipeline.py`) and how images are fetched."""

    of_training: ClassVar[tuple[str, ...]] = (
        *("streams", "window", "crop_area", "crop_ratio", "crop_sampling", "flip", "randaugment", "mixup"),
    )
    """Fields that say nothing where nobody trains."""

    streams: int = Field(default=16, ge=1, description="ranges of an epoch that are read side by side")
    window: int = Field(default=16384, ge=1, description="samples of a stream that are shuffled together")
    crop_area: tuple[float, float] = Field(default=(0.05, 1.0), description="least and largest area of a random crop")
    crop_ratio: tuple[float, float] = Field(
        default=(0.75, 1.3333), description="least and largest width over height of it"
    )
    crop_sampling: Literal["tensorflow", "torchvision"] = Field(
        default="tensorflow", description="how crops are drawn: as in the paper's code, or area and log ratio uniform"
    )
    flip: bool = Field(default=True, description="mirror half of the images left to right")
    randaugment: RandAugment | None = Field(default=None, description="random operations after crop and flip")
    mixup: float = Field(default=0.0, ge=0, description="alpha of Beta(alpha, alpha) for mixing pairs; 0 mixes none")
    evaluation: EvaluationResize = Field(default_factory=EvaluationResize, description="resizing for evaluation")

    loader_threads: int | None = placement(
        None,
        "threads of each worker that decode; 0 decodes in the training thread; if absent its share of the machine's "
        "cores in training, 16 at most, and 2 elsewhere",
        ge=0,
    )
    read_ahead: int = placement(2, "updates whose images are prepared ahead", ge=1)
    fetch: Literal["shards", "samples"] = placement(
        "shards", "whole shards into the cache, or each sample by a range request, past the cache and its checks"
    )
    fetch_ahead: bool = placement(True, "whether whole shards are fetched before they are needed")
    corrupt_shards: Literal["stop", "skip"] = placement(
        "stop", "what a shard with wrong bytes does: stop the run, or give way to the samples of the next shard"
    )
    max_bad: float = placement(0.001, "part of the samples read that may be unreadable and replaced", ge=0, le=1)
    native: bool = placement(
        True, "whether the native helper makes the crops, where it can be built: same bytes, faster"
    )
    cache: str | None = placement(None, "folder for shards on each node; one below the temporary folder if absent")
    cache_gigabytes: float = placement(
        40.0, "size that the folder is kept below, in 10^9 bytes, and below 80 % of the disk's free space", gt=0
    )

    def threads(self, workers_here: int | None = None) -> int:
        """Threads of a worker that decode, where so many workers share this machine's cores; None where none are."""
        if self.loader_threads is not None:
            return self.loader_threads
        return 2 if workers_here is None else max(1, min(MOST_THREADS, cores() // workers_here))

    @model_validator(mode="after")
    def _check(self) -> Self:
        low, high = self.crop_area
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_area={self.crop_area} must rise within (0, 1], for example (0.05, 1.0)")
        low, high = self.crop_ratio
        if not 0 < low <= high:
            raise ValueError(f"crop_ratio={self.crop_ratio} must rise above 0, for example (0.75, 1.3333)")
        return self
