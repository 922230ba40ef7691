"""What a network's weights show by themselves: filters of its embedding, and its position embeddings.

Shapes: C channels, D width or filters, M principal components, N patches, S the side of a filter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stages.models.resnet import StandardConv, Stem
from stages.models.vit import VisionTransformer

Array = NDArray[np.float64]
COMPONENTS = 28
"""As many as the paper's Figure 7 has."""


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Principal components of an embedding's filters, the greatest first."""

    what: str
    components: Array
    """[M, C, S, S], each of length 1, its greatest element positive."""
    explained: Array
    """[M]: parts of the filters' variance."""


def embedding_filters(model: VisionTransformer) -> Filters:
    """Of the patches' kernels; of a hybrid, of the first convolution's, as it computes with them."""
    stem = model.patch_embed.backbone
    if stem is None:
        return principal(model.patch_embed.proj.weight, "patch embedding")
    conv = (stem.stem if isinstance(stem, Stem) else stem).conv
    assert isinstance(conv, StandardConv)
    return principal(conv.standardised(), "first convolution of the stem")


def principal(kernels: Tensor, what: str) -> Filters:
    """The components of kernels [D, C, S, S], about their mean."""
    rows = kernels.detach().double().cpu().numpy().reshape(len(kernels), -1)
    _, sizes, components = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    # What D rows about their mean can span at most.
    kept = min(COMPONENTS, len(rows) - 1, rows.shape[1]) or 1
    components = components[:kept]
    greatest = np.abs(components).argmax(axis=1)
    components = components * np.sign(components[np.arange(len(components)), greatest])[:, None]
    total = max(float(np.square(sizes).sum()), np.finfo(np.float64).tiny)
    shape = (len(components), *kernels.shape[1:])
    return Filters(what=what, components=components.reshape(shape), explained=np.square(sizes[:kept]) / total)


def position_similarity(model: VisionTransformer) -> Array | None:
    """Cosines between the patches' position embeddings [N, N], or None where none are added to tokens.

    Where each layer has its own, those of the first.
    """
    found = model.position_embeddings()
    if found is None:
        found = model.blocks[0].position_embeddings() if len(model.blocks) else None  # type: ignore[operator]
    if found is None:
        return None
    rows = found[0, model.config.prefix_tokens :].detach().double().cpu().numpy()
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return np.clip(rows @ rows.T, -1.0, 1.0)


def about_positions(model: VisionTransformer) -> str:
    """What the picture of position embeddings is of, or why there is none."""
    config = model.config
    if config.position == "none":
        return "left out: the network has no position embeddings"
    if config.position == "relative":
        return "left out: relative positions are added to attention, not to tokens"
    where = {"stem": "before the blocks", "each_layer": "in the first of the blocks, each of which has its own"}
    return f"position={config.position}, as added {where.get(config.position_at, 'in every block')}"
