"""Frozen features of whole splits, and the two baselines beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cluster.storage.base import Storage
from stages.context import Output
from stages.data.config import DataConfig
from stages.data.loader import evaluation_batches
from stages.data.pixels import normalise
from stages.models.build import Network, build
from stages.models.initialize import initialize

Extractor = Callable[[Tensor], Tensor]
"""Images [b, 3, R, R] → features [b, D]."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features by kind [N, D] in float32, and the labels [N] that they share."""

    by_kind: dict[str, NDArray[np.float32]]
    labels: NDArray[np.int64]


def extractors(model: Network, kinds: Sequence[str], seed: int) -> dict[str, Extractor]:
    """The trained model's features, and those of the baselines asked for.

    `untrained` is the same network with the weights that pretraining from `seed` began with; `pixels`
    are the images themselves.
    """
    untrained = build(model.config, model.resolution, model.num_classes).eval()
    initialize(untrained, seed)
    known: dict[str, Extractor] = {
        "features": model.features,
        "untrained": untrained.features,
        "pixels": lambda images: images.flatten(1),
    }
    return {kind: known[kind] for kind in ("features", *kinds)}


def extract(
    storage: Storage,
    dataset: Output,
    splits: Sequence[str],
    by_kind: dict[str, Extractor],
    *,
    resolution: int,
    batch: int,
    classes: Sequence[int],
    config: DataConfig,
) -> Features:
    """Features of every image of the splits, in the order in which they lie there."""
    found: dict[str, list[Tensor]] = {kind: [] for kind in by_kind}
    labels: list[Tensor] = []
    batches = evaluation_batches(
        storage, dataset, splits, resolution=resolution, batch=batch, rank=0, world_size=1, classes=classes,
        config=config,
    )  # fmt: skip
    for part in batches:
        labels.append(part.labels[part.mask])
        images = normalise(part.images[part.mask])
        for kind, extractor in by_kind.items():
            with torch.inference_mode():
                found[kind].append(extractor(images).float())
    return Features(
        by_kind={kind: torch.cat(parts).numpy() for kind, parts in found.items()}, labels=torch.cat(labels).numpy()
    )
