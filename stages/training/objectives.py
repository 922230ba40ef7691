"""What is learned of a batch: the network's input and targets, the loss, and what is counted as right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from stages.training.config import TrainingConfig
from stages.training.examples import Example


@dataclass(frozen=True, kw_only=True)
class Question:
    """What the network is given, and what it ought to say."""

    inputs: tuple[Tensor, ...]
    """Of its `forward`."""
    targets: Tensor
    """Of the loss."""
    answers: Tensor
    """What counts as right."""


class Objective(Protocol):
    """Makes questions of examples, and judges the network's outputs. Equal on all ranks."""

    has_accuracy: bool
    """Whether an output can be right."""

    def question(self, example: Example) -> Question: ...

    def loss(self, outputs: Tensor, question: Question) -> Tensor:
        """The mean over the rows, in fp32: what is trained."""
        ...

    def losses(self, outputs: Tensor, question: Question) -> Tensor:
        """Of each row [b]: what an evaluation reports."""
        ...

    def hits(self, outputs: Tensor, question: Question) -> Tensor:
        """Part of each row's outputs that is right [b]; whatever it likes where none can be."""
        ...


class Supervised:
    """The class labels are learned."""

    has_accuracy = True

    def __init__(self, config: TrainingConfig) -> None:
        self._kind, self._smoothing = config.loss, config.label_smoothing

    def question(self, example: Example) -> Question:
        return Question(inputs=(example.images,), targets=example.targets, answers=example.labels)

    def loss(self, outputs: Tensor, question: Question) -> Tensor:
        return cross_entropy(outputs, question.targets, loss=self._kind, label_smoothing=self._smoothing)

    def losses(self, outputs: Tensor, question: Question) -> Tensor:
        return per_image_loss(outputs, question.targets, loss=self._kind)

    def hits(self, outputs: Tensor, question: Question) -> Tensor:
        return correct(outputs, question.answers)


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
