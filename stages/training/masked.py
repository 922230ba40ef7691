"""Masked patch prediction (paper, B.1.2): which patches are corrupted, what is predicted of them, and the loss.

Shapes: b rows, C cells of a patch, K corrupted patches of an image, N patches, S side of a patch in pixels.

The paper corrupts half of an image's patch embeddings: 80 % are replaced by a learned embedding, 10 % by that of
another patch, and 10 % stay; what the corrupted patches show is predicted from their own outputs after the final norm.
Its code for that was never published. Where it is silent, this is what happens here:

- Exactly `round(ratio × N)` patches of every image are corrupted, so that all images weigh the same and shapes do not
  change. Each of them is replaced or stays by a draw of its own, as in BERT: in a few patches no whole numbers would
  have these shares.
- Embeddings are corrupted after the projection and before position embeddings are added, as BERT's are: a corrupted
  patch knows where it is. The class token, where there is one, is never corrupted and predicts nothing.
- The other patch is one of the same image, any of the others with equal chances, and its embedding is the one that it
  had before anything was corrupted.
- Colours have 8 levels in each channel, which divide the grey levels 0 to 255 evenly: a level is the mean's integral
  part of a 32nd, and the class is 64 red + 8 green + blue. Means are exact, from integers, whatever the precision.
- The smaller patch of 4 × 4 has the means of the 16 parts as pixels, which overlap where 4 does not divide the patch's
  side (as torch's adaptive average pooling has them). Its loss is the mean of the 16, not their sum.
- Pixels are those of the network's input, in [-1, 1], with nothing done to them, and the loss is the mean of the
  squared errors.
- What is drawn follows from the seed and the global sample number alone, as crops do: it is the same on any number of
  ranks and in a run that was resumed, and another one in each epoch. In an evaluation it follows from the image's place
  in the splits, so that every evaluation asks the same.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from stages.data.pixels import normalise
from stages.data.random import uniform
from stages.models.config import ModelConfig
from stages.models.masked_config import CELLS, COLOURS, LEVELS, MaskedConfig
from stages.training.examples import Example
from stages.training.objectives import Question

Numbers = NDArray[np.int64]
MASK = -1
"""In place of the number of the patch that stands somewhere: the mask does."""


class MaskedPrediction:
    """The objective: predict what corrupted patches show."""

    def __init__(self, config: MaskedConfig, model: ModelConfig, seed: int) -> None:
        self._config, self._side, self._seed = config, model.stride, seed
        self.has_accuracy = config.has_classes

    def question(self, example: Example) -> Question:
        patches = (example.images.shape[-1] // self._side) ** 2
        purpose = "corruption" if example.training else "corruption of evaluations"
        drawn = corruption(example.samples, self._config, patches, seed=self._seed, purpose=purpose)
        places, sources = (torch.from_numpy(numbers).to(example.images.device, non_blocking=True) for numbers in drawn)
        every = self._targets(example)
        targets = every.gather(1, places[..., None].expand(-1, -1, every.shape[-1]))
        return Question(inputs=(example.images, places, sources), targets=targets, answers=targets)

    def loss(self, outputs: Tensor, question: Question) -> Tensor:
        return self.losses(outputs, question).mean()

    def losses(self, outputs: Tensor, question: Question) -> Tensor:
        outputs, targets = outputs.float(), question.targets
        if not self._config.has_classes:
            return functional.mse_loss(outputs, targets, reduction="none").mean(dim=(1, 2))
        losses = functional.cross_entropy(outputs.reshape(-1, COLOURS), targets.flatten(), reduction="none")
        return losses.reshape(len(targets), -1).mean(dim=1)

    def hits(self, outputs: Tensor, question: Question) -> Tensor:
        if not self._config.has_classes:
            return torch.zeros(len(outputs), device=outputs.device)
        best = outputs.reshape(*question.answers.shape, COLOURS).argmax(dim=-1)
        return (best == question.answers).double().mean(dim=(1, 2))

    def _targets(self, example: Example) -> Tensor:
        """Of every patch, [b, N, C] or [b, N, 3 S²]."""
        if self._config.target == "pixels":
            return functional.unfold(normalise(example.pixels), self._side, stride=self._side).transpose(1, 2)
        return colours(example.pixels, self._side, CELLS[self._config.target])


def corruption(
    samples: Numbers, config: MaskedConfig, patches: int, *, seed: int, purpose: str
) -> tuple[Numbers, Numbers]:
    """For samples by their numbers [b]: the corrupted patches [b, K], and whose embedding stands there [b, K].

    The latter is another patch's number, the patch's own where it stays, or MASK.
    """
    count = config.corrupted(patches)
    numbers = uniform(seed, purpose, samples, patches + 2 * count)
    order, kinds, others = np.split(numbers, [patches, patches + count], axis=1)
    places = np.argsort(order, axis=1, kind="stable")[:, :count]
    # Any patch but the place's own: those from there on are one further.
    other = (others * (patches - 1)).astype(np.int64)
    other += other >= places
    sources = np.where(kinds < config.mask_share + config.random_share, other, places)
    return places, np.where(kinds < config.mask_share, MASK, sources)


def colours(pixels: Tensor, side: int, cells: int) -> Tensor:
    """Classes of the mean colours of every patch's `cells` × `cells` parts, row by row: [b, N, C], of COLOURS.

    `pixels` are bytes [b, R, R, 3]; `side` that of a patch.
    """
    rows, grid = len(pixels), pixels.shape[1] // side
    patches = pixels.reshape(rows, grid, side, grid, side, 3)
    edges = [(cell * side // cells, -(-(cell + 1) * side // cells)) for cell in range(cells)]
    levels = [
        patches[:, :, top:bottom, :, left:right].sum(dim=(2, 4), dtype=torch.int64)
        // (256 // LEVELS * (bottom - top) * (right - left))
        for top, bottom in edges
        for left, right in edges
    ]
    weights = torch.tensor([LEVELS**2, LEVELS, 1], device=pixels.device)
    return (torch.stack(levels, dim=3) * weights).sum(dim=-1).reshape(rows, grid**2, cells**2)
