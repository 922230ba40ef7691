"""The images that a network is shown: drawn from a split by the stage's seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cluster.errors import UserError
from stages.analyze.config import AnalyzeConfig
from stages.context import Context, Output
from stages.data.dataset import open_cache, open_shards
from stages.data.evaluation import evaluation_image
from stages.data.manifest import dataset_meta
from stages.data.order import in_turn
from stages.data.random import permutation
from stages.data.reader import SampleReader


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Images [n, R, R, 3], grey levels, and their places in the split [n], in the order in which they were drawn."""

    images: Tensor
    places: tuple[int, ...]


def draw_images(config: AnalyzeConfig, dataset: Output, resolution: int, context: Context) -> Drawn:
    """Up to `config.images` different ones; those that cannot be decoded are told and left out. Raises UserError."""
    meta = dataset_meta(dataset)
    total = meta.split(config.split).count
    if not total:
        others = ", ".join(name for name, split in meta.splits.items() if split.count)
        raise UserError(f"split={config.split}: data set {meta.name!r} has no images there: choose one of {others}")
    cache = open_cache(context.storage, dataset, config.input)
    shards = open_shards(cache, dataset, [config.split])
    whole = config.input.fetch == "shards"
    reader = SampleReader(cache, shards, range(len(meta.classes)), whole=whole, max_bad=config.input.max_bad)
    wanted = permutation(total, context.seed, "analyze")[: config.images]
    found = dict[int, np.ndarray]()
    # In the order in which they lie, so that each shard is opened once.
    in_place = np.sort(wanted)
    for place, shard, index in zip(in_place, *in_turn(shards.counts, in_place), strict=True):
        sample = reader.read_or_none(int(shard), int(index))
        if sample is not None:
            found[int(place)] = evaluation_image(sample.image, config.input.evaluation, resolution)
    places = tuple(place for place in wanted.tolist() if place in found)
    if not places:
        raise UserError(f"split={config.split}: none of {len(wanted)} images of {meta.name!r} can be decoded")
    return Drawn(images=torch.from_numpy(np.stack([found[place] for place in places])), places=places)
