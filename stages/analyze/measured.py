"""A network's attention on images, one batch and one layer at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cluster.errors import UserError
from stages.analyze.attention import watch_attention
from stages.analyze.measures import attention_distance, attention_entropy, patch_distances, roll_out, seen
from stages.data.pixels import normalise
from stages.models.vit import VisionTransformer

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Means over images, by layer and head, and what the first images' outputs are made of."""

    distance: Array
    """[layers, heads], in pixels of the network's input."""
    entropy: Array
    """[layers, heads], in nats."""
    rollout: Array
    """[examples, rows, columns], of patches."""


def measure(
    model: VisionTransformer, images: Tensor, *, examples: int, batch: int, renormalise: bool = True
) -> Measured:
    """Of images [n, R, R, 3], grey levels. Raises UserError where the network gives no numbers."""
    sums = torch.zeros(2, model.config.depth, model.config.num_heads, dtype=torch.float64)
    distances = patch_distances(model.grid, model.config.stride)
    rollouts: list[Tensor] = []
    for start in range(0, len(images), batch):
        rollout = _Rollout(max(0, examples - start))

        def tell(layer: int, own: Tensor, rollout: _Rollout = rollout) -> None:
            # Image by image: a whole batch of a large network would be gigabytes in double precision.
            for image in own.split(1):
                sums[0, layer] += attention_distance(image, distances, renormalise=renormalise)[0]
                sums[1, layer] += attention_entropy(image)[0]
            rollout.add(own)

        watch_attention(model, normalise(images[start : start + batch]), tell)
        if rollout.product is not None:
            rollouts.append(seen(rollout.product, model.grid, model.config.prefix_tokens))
    distance, entropy = (sums / len(images)).numpy()
    if not np.isfinite([distance, entropy]).all():
        layer = int(np.argmin(np.isfinite(entropy).all(axis=1)))
        raise UserError(f"attention of layer {layer} is not finite: look at the network's training")
    whole = torch.cat(rollouts) if rollouts else torch.zeros(0, *model.grid, dtype=torch.float64)
    return Measured(distance=distance, entropy=entropy, rollout=whole.numpy())


class _Rollout:
    """Of a batch's first images, layer by layer."""

    def __init__(self, images: int) -> None:
        self._images = images
        self.product: Tensor | None = None

    def add(self, probabilities: Tensor) -> None:
        if self._images:
            self.product = roll_out(self.product, probabilities[: self._images])
