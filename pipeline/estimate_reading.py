"""What the machines of a training fetch of its data set, and whether the first epoch waits for that."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from cluster.shapes import ClusterShape
from cluster.sizes import size
from pipeline.words import duration
from stages.training.config import TrainingConfig

ASSUMED_IMAGE_BYTES = 110_000
"""Of an image in storage, where nobody says it: about ImageNet-1k's, whose 1.28 million JPEGs have 138 GB."""
ASSUMED = "assumed"


@dataclass(frozen=True, kw_only=True)
class Images:
    """The images of an epoch."""

    count: int
    image_bytes: float = ASSUMED_IMAGE_BYTES
    """Of each in storage, in the mean."""
    source: str = ASSUMED
    """Where that is from."""


@dataclass(frozen=True, kw_only=True)
class FirstEpoch:
    """An epoch whose images come from storage, on each machine. Times are in seconds, sizes in bytes."""

    image_bytes: float
    image_bytes_from: str
    fetched_bytes: float
    fetch_seconds: float
    train_seconds: float
    """On the same images, if they were there."""
    epochs: float
    cached_bytes: float
    """That the machine keeps at most; 0 where nothing is kept."""

    @property
    def kept(self) -> bool:
        """Whether later epochs find all in the machine's cache."""
        return self.fetched_bytes <= self.cached_bytes

    @property
    def waits(self) -> bool:
        """Whether training waits for storage."""
        return self.fetch_seconds > self.train_seconds

    @property
    def warnings(self) -> list[str]:
        """What a plan that counts the training alone leaves out."""
        if not self.waits:
            return []
        missing = self.fetch_seconds - self.train_seconds
        took = (
            f"to fetch its images takes {duration(self.fetch_seconds)}, to train on them {duration(self.train_seconds)}"
        )
        if self.kept or self.epochs <= 1:
            return [f"the first epoch waits for storage: {took}: {duration(missing)} that `time` leaves out"]
        return [
            f"each epoch waits for storage: {took}, and the cache keeps {size(int(self.cached_bytes))} of "
            f"{size(int(self.fetched_bytes))}: up to {duration(missing * self.epochs)} that `time` leaves out"
        ]


def first_epoch(
    images: Images | None,
    config: TrainingConfig,
    updates: int,
    shape: ClusterShape,
    *,
    share: float,
    images_per_s: float,
) -> FirstEpoch | None:
    """The first epoch where each machine fetches this share of it; None where images or storage's rate are unknown."""
    rate = shape.read_mb_per_s or shape.bucket_mb_per_s
    if images is None or rate is None:
        return None
    seen = min(images.count, updates * config.global_batch)
    fetched = share * seen * images.image_bytes
    return FirstEpoch(
        image_bytes=images.image_bytes,
        image_bytes_from=images.source,
        fetched_bytes=fetched,
        fetch_seconds=fetched / (rate * 1e6),
        train_seconds=seen / images_per_s,
        epochs=updates * config.global_batch / images.count,
        cached_bytes=config.input.cache_gigabytes * 1e9 if config.input.fetch == "shards" else 0.0,
    )


def read_share(config: TrainingConfig, part: float) -> float:
    """Part of the data set that a machine with this part of each batch fetches in an epoch.

    Row i of a batch is of stream i mod S. Where S is a multiple of a batch's rows B it is always of the same ones; else
    it moves by B mod S with each batch, and comes to every stream that leaves the same rest when divided by gcd(B, S).
    """
    if config.input.mixup:
        # An image's partner may be in any row.
        return 1.0
    return min(1.0, part * config.global_batch / gcd(config.global_batch, config.input.streams))
