"""How large the data sets are that a plan's training stages read: as they are, as stated, as expected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline.config import Workflow
from pipeline.estimate_reading import Images
from pipeline.reuse import Finished
from stages.config import StageConfig
from stages.data.manifest import Split, dataset_meta
from stages.finetune.config import FinetuneConfig
from stages.ingest.config import ExpectedData, IngestConfig
from stages.pretrain.config import PretrainConfig

if TYPE_CHECKING:
    from pipeline.plan import Question

Training = PretrainConfig | FinetuneConfig

SAME_SIZE = 0.02
"""Share of its images by which a data set may differ from the one that a workflow was written for."""


def expected_data(config: StageConfig) -> ExpectedData | None:
    """What an ingestion's workflow was written for."""
    return config.expected if isinstance(config, IngestConfig) else None


def size_of(
    workflow: Workflow, config: Training, done: Mapping[str, Finished], question: Question
) -> tuple[int | None, int | None]:
    """Training images and classes of a stage: those of its data set where it is done, else as they are stated.

    What is asked goes before what the workflow was written for. One that predicts masked patches has no classes.
    """
    masked = isinstance(config, PretrainConfig) and config.masked is not None
    if config.data not in done:
        expected = expected_data(workflow.stages[config.data])
        images = question.images or (expected.train_images if expected else None)
        return images, 0 if masked else question.classes or (expected.classes if expected else None)
    dataset = dataset_meta(done[config.data].output)
    classes = len(dataset.classes)
    if isinstance(config, PretrainConfig):
        classes = 0 if masked else classes - len(dataset.held_out)
    return sum(split.count for split in _splits(config, done)), classes


def epoch_images(config: Training, done: Mapping[str, Finished], question: Question, count: int) -> Images:
    """So many images of an epoch with their size in storage: their data set's where it is done, else as stated."""
    if config.data in done:
        size = sum(split.bytes for split in _splits(config, done))
        return Images(count=count, image_bytes=size / count, source="by the data set")
    if question.image_bytes is not None:
        return Images(count=count, image_bytes=question.image_bytes, source="stated")
    return Images(count=count)


def _splits(config: Training, done: Mapping[str, Finished]) -> list[Split]:
    """What a stage trains on of a data set that is done."""
    splits = dataset_meta(done[config.data].output).splits
    names = ("train",) if isinstance(config, PretrainConfig) else ("train", "held_out")
    return [splits[name] for name in names if name in splits]


def other_size(expected: ExpectedData | None, images: int | None, classes: int) -> list[str]:
    """Where the data set is not the one that the workflow was written for: nothing is guessed, it is told."""
    if expected is None:
        return []
    given = f"{images:,} images of {classes:,} classes"
    wanted = f"{expected.train_images:,} images of {expected.classes:,} classes"
    near = images is not None and abs(images / expected.train_images - 1) <= SAME_SIZE
    return [] if near and classes == expected.classes else [f"trains on {given}; this workflow is for {wanted}"]
