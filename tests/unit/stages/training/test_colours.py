"""The 512 colours of masked patch prediction, of photographs: they occur, are what pixels say, and can be learned."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images

from cluster.storage import open_storage
from stages.context import Context
from stages.data.evaluation_loader import evaluation_batches
from stages.data.pixels import normalise
from stages.ingest.config import FolderSource, IngestConfig
from stages.ingest.run import run as run_ingest
from stages.models.masked_config import COLOURS, MaskedConfig
from stages.training.examples import Example
from stages.training.job import Job
from stages.training.loop import train
from stages.training.masked import MaskedPrediction
from tests.unit.stages.training.conftest import Stage

SIDE, RESOLUTION, PATCH = 80, 32, 4
"""Of a piece of a photograph, of the image that it becomes, and of that one's patches, in pixels."""
COUNTS = {"train": 100, "validation": 16}
"""Pieces of a photograph in one order of its channels."""
ROWS, COLUMNS = 4, 6
"""Of the fields that a photograph is cut into."""


def fields(photo: NDArray[np.uint8]) -> dict[str, list[NDArray[np.uint8]]]:
    """One field of four is for validation, in every row another one: a piece never crosses into another field."""
    tall, wide = photo.shape[0] // ROWS, photo.shape[1] // COLUMNS
    found: dict[str, list[NDArray[np.uint8]]] = {"train": [], "validation": []}
    for row, column in itertools.product(range(ROWS), range(COLUMNS)):
        split = "validation" if (row + column) % 4 == 0 else "train"
        found[split].append(photo[row * tall : (row + 1) * tall, column * wide : (column + 1) * wide])
    return found


def piece(field: NDArray[np.uint8], generator: np.random.Generator) -> Image.Image:
    y, x = (int(generator.integers(0, side - SIDE + 1)) for side in field.shape[:2])
    return Image.fromarray(field[y : y + SIDE, x : x + SIDE]).resize((RESOLUTION, RESOLUTION))


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """Pieces of the two photographs that come with scikit-learn, in all six orders of their channels.

    Two photographs have a quarter of the colours; with red for green and so on they stand for more of them. Training
    never sees the fields that validation is cut from.
    """
    folder, generator = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for name, photo in zip(("temple", "flower"), load_sample_images().images, strict=True):
        for split, own in fields(photo).items():
            (folder / "in" / split / name).mkdir(parents=True)
            for order, number in itertools.product(itertools.permutations(range(3)), range(COUNTS[split])):
                image = piece(np.ascontiguousarray(own[number % len(own)][..., list(order)]), generator)
                image.save(folder / "in" / split / name / f"{''.join(map(str, order))}-{number}.png")
    storage = open_storage(f"file://{folder / 'root'}")
    context = Context(
        storage=storage, folder="stages/ingest/x", attempt=1, seed=0, gang=None,
        tasks=lambda function, items, label: [function(item) for item in items],
    )  # fmt: skip
    config = IngestConfig(source=FolderSource(path=str(folder / "in")), test_fraction=0)
    return Stage(storage, run_ingest(config, {}, context).output, "stages/pretrain/colours")


def masked_job(stage: Stage, **settings) -> Job:
    model = {"width": 32, "depth": 2, "mlp_dim": 64, "num_heads": 4, "patch_size": PATCH}
    job = stage.job(model=model, **settings)
    return replace(job, resolution=RESOLUTION, class_ids=(0, 1), masked=MaskedConfig())


def asked(stage: Stage, split: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of a split, as evaluations ask: the colours of the corrupted patches, and what the pixels say of them."""
    job = masked_job(stage)
    objective = MaskedPrediction(MaskedConfig(), job.model, job.seed)
    targets, stated = [], []
    for batch in evaluation_batches(
        stage.storage, job.dataset, (split,), resolution=RESOLUTION, batch=64, rank=0, world_size=1,
        classes=job.class_ids, config=job.config.input,
    ):  # fmt: skip
        example = Example(
            pixels=batch.images, images=normalise(batch.images), labels=batch.labels, targets=batch.labels,
            samples=batch.samples, training=False,
        )  # fmt: skip
        question = objective.question(example)
        kept = batch.mask.numpy()
        targets.append(question.targets[..., 0].numpy()[kept])
        # Means over the pixels of each patch, in eighths of the range, first red, then green, then blue.
        pixels = batch.images.numpy().astype(np.float64)
        grid = RESOLUTION // PATCH
        means = pixels.reshape(-1, grid, PATCH, grid, PATCH, 3).mean(axis=(2, 4)).reshape(-1, grid**2, 3)
        levels = np.floor(means / 256 * 8).astype(np.int64)
        every = levels[..., 0] * 64 + levels[..., 1] * 8 + levels[..., 2]
        stated.append(np.take_along_axis(every, question.inputs[1].numpy(), axis=1)[kept])
    return np.concatenate(targets), np.concatenate(stated)


def test_photographs_have_most_of_the_512_colours_and_they_are_what_pixels_say(stage):
    found = set()
    for split in ("train", "validation"):
        targets, stated = asked(stage, split)
        assert targets.shape == (12 * COUNTS[split], 32)
        np.testing.assert_array_equal(targets, stated)
        found |= set(targets.ravel().tolist())
    assert len(found) > COLOURS / 2
    # Each level of each channel is among them.
    assert all({value // unit % 8 for value in found} == set(range(8)) for unit in (64, 8, 1))


def test_colours_of_parts_never_seen_are_learned_beyond_how_often_each_occurs(stage):
    job = masked_job(
        stage, updates=200, save_every=1000, lr=0.005, warmup_updates=20, log_every=50,
        input={"crop_area": (0.5, 1.0), "window": 256, "streams": 4, "loader_threads": 0},
    )  # fmt: skip
    outcome = train(job, stage.rank())
    targets, _ = asked(stage, "validation")
    shares = np.bincount(targets.ravel(), minlength=COLOURS) / targets.size
    entropy = -sum(share * np.log(share) for share in shares if share)
    # Many colours, none of them most of the time: there is something to learn.
    assert entropy > 4
    assert shares.max() < 0.2
    # What a network says that looks at nothing costs the entropy at least, and is right as often as its best guess.
    assert outcome["metrics"]["validation/loss"] < 0.75 * entropy
    assert outcome["metrics"]["validation/accuracy"] > 1.5 * shares.max()
