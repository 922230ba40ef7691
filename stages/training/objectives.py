"""Losses, as functions of logits and labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def cross_entropy(logits: Tensor, labels: Tensor, *, loss: str, label_smoothing: float = 0.0) -> Tensor:
    """Mean loss over the batch, in fp32. `logits` [B, C]; `labels` are class positions [B], or targets [B, C].

    `softmax` is the usual cross-entropy. `sigmoid` is the paper's for many classes: the binary
    cross-entropy summed over classes and averaged over images (big_vision `utils.py`).
    """
    logits = logits.float()
    if loss == "softmax":
        return functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    return _binary(logits, labels).mean()


def per_image_loss(logits: Tensor, labels: Tensor, *, loss: str) -> Tensor:
    """Loss of each image [B], without label smoothing: what an evaluation reports."""
    logits = logits.float()
    if loss == "softmax":
        return functional.cross_entropy(logits, labels, reduction="none")
    return _binary(logits, labels)


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the best-scored class is the label, or one of the labels where there are several, [B] bool."""
    best = torch.argmax(logits, dim=1)
    return best == labels if labels.ndim == 1 else labels.gather(1, best[:, None])[:, 0] > 0


def _binary(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy [B], summed over the classes: of each, softplus(logit) - target · logit.

    torch's own computes 1 + e^logit in fp32: at -10, where many classes begin, two parts in a thousand are lost.
    """
    if labels.ndim == 2:
        hits = (logits * labels.to(logits.dtype)).sum(dim=1)
    else:
        hits = logits.gather(1, labels[:, None])[:, 0]
    return functional.softplus(logits).sum(dim=1) - hits
