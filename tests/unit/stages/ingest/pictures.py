"""Real small images, and what ingestion made of them."""

from __future__ import annotations

import io
import json

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from cluster.storage import open_storage
from stages.context import Context
from stages.data.manifest import dataset_meta
from stages.ingest.config import IngestConfig
from stages.ingest.run import run
from tests.unit.stages.shards import samples

DIGITS = load_digits()
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def jpeg(number):
    """A digit of scikit-learn's as JPEG; no two are equal."""
    buffer = io.BytesIO()
    pixels = np.kron(DIGITS.images[number] * 15, np.ones((3, 3))).astype(np.uint8)
    Image.fromarray(pixels).convert("RGB").save(buffer, "JPEG", quality=90, comment=str(number))
    return buffer.getvalue()


def digit(number):
    return int(DIGITS.target[number])


def context(tmp_path, attempt=1):
    def tasks(function, items, label):
        return map(function, items)

    storage = open_storage(f"file://{tmp_path / 'storage'}")
    return Context(storage=storage, folder="stages/ingest/x", attempt=attempt, seed=0, tasks=tasks, gang=None)


def ingest(source, **fields):
    return IngestConfig.model_validate({"source": source, "samples_per_shard": 7, **fields})


def ingested(tmp_path, config, attempt=1):
    """The description of what `config` gives, and every split's (image, label or labels), by plain webdataset."""
    place = context(tmp_path, attempt)
    output = run(config, {}, place).output
    meta = dataset_meta(output)
    found = {
        split: [
            (
                sample.get("jpg") or sample["png"],
                int(sample["cls"]) if "cls" in sample else json.loads(sample["json"])["labels"],
            )
            for sample in samples(place.storage, output, split)
        ]
        for split in meta.splits
    }
    return meta, found
