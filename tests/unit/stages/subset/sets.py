"""Data sets for the tests of subsets, and what a view of them holds."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cluster.storage import Storage
from stages.context import Context, Output, Result
from stages.data.shards import ShardWriter
from stages.ingest.config import IngestConfig, WebDatasetSource
from stages.ingest.run import run as ingest
from stages.subset.config import SubsetConfig
from stages.subset.run import run
from tests.unit.stages.shards import index, shards


def in_process(function: Callable[[Any], Any], items: Any, *, label: str) -> Any:
    """Tasks one after another."""
    return map(function, items)


def context(storage: Storage, folder: str, attempt: int = 1, tasks: Any = in_process, seed: int = 4) -> Context:
    return Context(storage=storage, folder=folder, attempt=attempt, seed=seed, tasks=tasks, gang=None)  # type: ignore[arg-type]


def subset(
    storage: Storage, data: Output, *without: Output, folder: str = "subset", attempt: int = 1, **fields: Any
) -> Result:
    """A subset of `data`, without what is in others."""
    names = tuple(f"other{number}" for number in range(len(without)))
    inputs = {"data": data, **{f"without.{number}": output for number, output in enumerate(without)}}
    return run(SubsetConfig(data="data", without=names, **fields), inputs, context(storage, folder, attempt))


def kept(storage: Storage, output: Output, split: str = "train") -> dict[tuple[str, int], tuple[int, ...]]:
    """Every sample of a split by its tar and place, with its labels."""
    found = {}
    for number, shard in enumerate(shards(storage, output, split)):
        own = index(storage, output, number, split)
        for sample, offset in enumerate(own.offsets.tolist()):
            found[shard.tar.sha256, offset] = tuple(own.labels_of(sample))
    return found


def photographs(count: int) -> list[Image.Image]:
    """Different 96 × 96 pieces of the photographs that scikit-learn ships."""
    from sklearn.datasets import load_sample_images

    whole = [Image.fromarray(np.asarray(image)) for image in load_sample_images().images]
    places = [(left, top) for left in range(0, 540, 100) for top in range(0, 320, 100)]
    found = [image.crop((left, top, left + 96, top + 96)) for image in whole for left, top in places]
    found = [image for image in found if np.asarray(image.convert("L")).std() > 12]
    assert len(found) >= count
    return found[:count]


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tars(
    storage: Storage,
    folder: Path,
    name: str,
    images: Sequence[bytes],
    split: str = "train",
    labels: Sequence[Sequence[int]] | None = None,
) -> Output:
    """A data set of encoded images in two tars, indexed in place: of three classes, or with several labels each."""
    place = folder / name
    place.mkdir()
    for number in range(2):
        with open(place / f"{number}.tar", "wb") as file:
            writer = ShardWriter(file)
            for sample in range(number, len(images), 2):
                extension = "png" if images[sample][:4] == b"\x89PNG" else "jpg"
                own = [sample % 3] if labels is None else labels[sample]
                writer.add(f"{sample:04d}", extension, images[sample], own, multi_label=labels is not None)
            writer.close()
    several = {} if labels is None else {"label_member": "json", "label_field": "labels", "multi_label": True}
    config = IngestConfig(source=WebDatasetSource(shards={split: str(place)}, **several))  # type: ignore[dict-item]
    return ingest(config, {}, context(storage, f"{folder.name}-{name}")).output
