"""Mixup: convex mixtures of two samples' images and labels (Zhang et al., "mixup", 2018).

As in big_vision (`utils.py`, `get_mixup`), one weight is drawn for each batch from Beta(alpha, alpha), the
larger of it and its complement is each row's own share, and the partner comes from the same batch. Both
are functions of the seed and the global sample number here, so that any rank computes them alone:

- The weight is keyed by the number of the global batch, not by rank.
- Rows 2k and 2k + 1 of a global batch are each other's partners. big_vision rolls the rows by one within
  each device's part of the batch (the paper's code reverses each host's), which makes the partner depend on
  the number of devices; rolled over the global batch, each rank's first row would need an image that
  another rank decodes. In pairs, one is decoded twice only where a rank's rows begin or end within a pair,
  that is where the global batch over the world size is odd. The last row of an odd global batch stays as
  it is.

A row's distribution is the reference's, since the rows of a batch are in random order. What differs is
that the two mixtures of a pair are made from the same two samples.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import betaincinv
from torch import Tensor

from stages.data.random import uniform

Numbers = NDArray[np.int64]


def partners(samples: Numbers, global_batch: int) -> Numbers:
    """The global sample numbers [n] that the samples with these numbers [n] are mixed with.

    A partner's partner is the sample itself. The last row of an odd global batch is its own partner.
    """
    rows = samples % global_batch
    others = rows ^ 1
    return samples + np.where(others < global_batch, others - rows, 0)


def mixup_weights(samples: Numbers, *, seed: int, global_batch: int, alpha: float) -> Tensor:
    """Each sample's own share, float32 [n] from 0.5 to 1; its partner has the rest. Equal within a global batch.

    For X from Beta(alpha, alpha), which is symmetric, the smaller of X and 1 - X lies below x with twice
    the probability that X does. So it is the quantile of X at half a uniform number, by the inverse of the
    regularised incomplete beta function. Its last bits are those of the scipy that is installed.
    """
    if alpha <= 0:
        raise ValueError(f"alpha={alpha} must be above 0, for example 0.2: leave mixup out where nothing is mixed")
    batches, rows = np.unique(samples // global_batch, return_inverse=True)
    smaller = betaincinv(alpha, alpha, uniform(seed, "mixup", batches, 1)[:, 0] / 2)
    return torch.from_numpy((1 - smaller).astype(np.float32)[rows])


def mix_images(images: Tensor, others: Tensor, weights: Tensor) -> Tensor:
    """Mixtures, float32 [n, ...], of uint8 images [n, ...] and their partners' `others`, by their own shares [n].

    Grey levels stay within 0..255. Mixing before normalising or after it is the same, both being affine.
    """
    return _mix(images, others, weights.reshape(-1, *[1] * (images.ndim - 1)))


def mix_classes(labels: Tensor, others: Tensor, weights: Tensor, classes: int) -> Tensor:
    """Soft targets, float32 [n, classes], of samples with one class each: int64 [n], and their partners' `others`.

    Each row's sum is exactly 1: the difference of 1 and a float32 from 0.5 to 1 is not rounded.
    """
    targets = torch.zeros(len(labels), classes, device=labels.device)
    targets.scatter_(1, labels[:, None], weights[:, None])
    return targets.scatter_add_(1, others[:, None], 1 - weights[:, None])


def mix_multi_hot(labels: Tensor, others: Tensor, weights: Tensor) -> Tensor:
    """Soft targets, float32 [n, classes], of samples with any number of classes each: rows of zeros and ones."""
    return _mix(labels, others, weights[:, None])


def _mix(own: Tensor, others: Tensor, weights: Tensor) -> Tensor:
    return own.to(torch.float32) * weights + others.to(torch.float32) * (1 - weights)
