"""Position embeddings for another grid."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Mode = Literal["scipy_bilinear", "bicubic", "bicubic_antialias"]


def resample_position_embeddings(
    embeddings: Tensor,
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    *,
    prefix_tokens: int = 1,
    mode: Mode = "scipy_bilinear",
) -> Tensor:
    """Position embeddings [1, P + rows · columns, D] resampled in 2-D from one grid to another.

    The first `prefix_tokens` (the class token's) are kept as they are. Modes: `scipy_bilinear` is the
    paper's (`vit_jax/checkpoint.py`: `scipy.ndimage.zoom` of order 1, that is linear interpolation with
    the corners aligned; for some grids, 28 to 14 among them, scipy's rounding makes the last row and
    column zero, which is not copied); `bicubic` is Hugging Face's, and `bicubic_antialias` timm's.
    """
    if old_grid == new_grid:
        return embeddings
    expected = prefix_tokens + old_grid[0] * old_grid[1]
    if embeddings.shape[1] != expected:
        raise ValueError(f"{embeddings.shape[1]} position embeddings; a grid of {old_grid} has {expected}")
    prefix, grid = embeddings[:, :prefix_tokens], embeddings[:, prefix_tokens:]
    image = grid.float().reshape(1, *old_grid, -1).permute(0, 3, 1, 2)
    if mode == "scipy_bilinear":
        image = functional.interpolate(image, size=new_grid, mode="bilinear", align_corners=True)
    else:
        image = functional.interpolate(image, size=new_grid, mode="bicubic", antialias=mode == "bicubic_antialias")
    resampled = image.permute(0, 2, 3, 1).reshape(1, new_grid[0] * new_grid[1], -1)
    return torch.cat([prefix, resampled.to(embeddings.dtype)], dim=1)


def is_resampled(name: str) -> bool:
    """Whether a parameter has a value for each place of the grid, and so becomes another one on another grid."""
    return name.rsplit(".", 1)[-1] == "pos_embed" or name.endswith(("positions.x", "positions.y", "relative.keys"))


def resample(
    name: str, value: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], *, prefix_tokens: int, mode: Mode
) -> Tensor:
    """A model's parameter of this name on another grid: in 2-D, or along the one axis that its places have.

    The paper resamples learned 1-D embeddings alone. Tables of rows and columns, and keys of relative offsets, are
    stretched in a straight line, their ends where they were.
    """
    if name.endswith("pos_embed"):
        return resample_position_embeddings(value, old_grid, new_grid, prefix_tokens=prefix_tokens, mode=mode)
    if name.endswith("relative.keys"):
        places = 2 * (prefix_tokens + new_grid[0] * new_grid[1]) - 1
    else:
        places = new_grid[1] if name.endswith("positions.x") else new_grid[0]
    stretched = functional.interpolate(value.float().transpose(1, 2), size=places, mode="linear", align_corners=True)
    return stretched.transpose(1, 2).to(value.dtype)
