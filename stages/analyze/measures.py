"""What attention's probabilities come to.

Shapes: B images, H heads, L tokens, N patches, P tokens before the patches' (the class token, or none).
"""

from __future__ import annotations

import torch
from torch import Tensor


def patch_distances(grid: tuple[int, int], stride: int) -> Tensor:
    """Distances between the centres of patches in pixels of the network's input, [N, N], float64."""
    rows, columns = (torch.arange(side, dtype=torch.float64) * stride for side in grid)
    centres = torch.cartesian_prod(rows, columns)
    return (centres[:, None] - centres[None, :]).norm(dim=-1)


def attention_distance(probabilities: Tensor, distances: Tensor, *, renormalise: bool = True) -> Tensor:
    """Mean distance that each head of each image attends over, in pixels: [B, H, L, L], [N, N] → [B, H], float64.

    The distances from a patch to all others, weighted by attention, averaged over the patches (paper, D.7). Tokens
    before the patches' have no place, so their rows and columns are dropped; with `renormalise` each patch's
    attention to patches then sums to 1 again. Without, what goes to the class token counts as no distance.
    """
    before = probabilities.shape[-1] - len(distances)
    among = probabilities[..., before:, before:].double()
    travelled = (among * distances).sum(dim=-1)
    if renormalise:
        # A patch that attends to the class token alone attends over no distance.
        travelled = travelled / among.sum(dim=-1).clamp(min=torch.finfo(torch.float64).tiny)
    return travelled.mean(dim=-1)


def attention_entropy(probabilities: Tensor) -> Tensor:
    """Entropy of a token's attention to all L tokens in nats, averaged over tokens: [B, H, L, L] → [B, H], float64.

    ln L where it attends to all alike, 0 where it attends to one.
    """
    return torch.special.entr(probabilities.double()).sum(dim=-1).mean(dim=-1)


def roll_out(before: Tensor | None, probabilities: Tensor) -> Tensor:
    """Attention rollout through one more layer: [B, L, L], the product so far, and [B, H, L, L] → [B, L, L], float64.

    The mean over heads, plus the identity for the residual connection, each row's sum made 1, times the product of
    the layers before (Abnar and Zuidema, 2020; paper, D.8).
    """
    mean = probabilities.mean(dim=1).double()
    step = (mean + torch.eye(mean.shape[-1], dtype=mean.dtype)) / 2  # rows of both sum to 1
    step = step / step.sum(dim=-1, keepdim=True)
    return step if before is None else step @ before


def seen(rollout: Tensor, grid: tuple[int, int], prefix_tokens: int) -> Tensor:
    """How much of each patch the network's output is made of: [B, L, L] → [B, rows, columns].

    The class token's row; the mean of the patches' rows where there is no class token.
    """
    rows = rollout[:, :1] if prefix_tokens else rollout
    return rows.mean(dim=1)[:, prefix_tokens:].reshape(-1, *grid)
