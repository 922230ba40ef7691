"""Position embeddings other than the learned 1-D ones: the rows of the paper's Table 8, and fixed ones.

Shapes: B images, D width, H heads, K = D / H, L tokens, P tokens before the patches' (the class token, or none).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LearnedPositions2d(nn.Module):
    """A table for the columns and one for the rows, of half a vector each, joined (paper, D.4) → [1, L, D].

    Tokens before the patches' have a whole vector of their own, which the paper does not mention.
    """

    def __init__(self, grid: tuple[int, int], prefix_tokens: int, width: int) -> None:
        super().__init__()
        rows, columns = grid
        self.x = nn.Parameter(torch.zeros(1, columns, width // 2))
        self.y = nn.Parameter(torch.zeros(1, rows, width // 2))
        self.prefix = nn.Parameter(torch.zeros(1, prefix_tokens, width)) if prefix_tokens else None

    def forward(self) -> Tensor:
        rows, columns = self.y.shape[1], self.x.shape[1]
        patches = torch.cat([self.x.repeat(1, rows, 1), self.y.repeat_interleave(columns, dim=1)], dim=-1)
        return patches if self.prefix is None else torch.cat([self.prefix, patches], dim=1)


class RelativePositions(nn.Module):
    """Learned keys for each offset between two tokens of the sequence: a bias of the attention's logits.

    As the paper's D.4 says it: the content's query times the offset's embedding, added before the softmax. Offsets
    are those of the sequence, the class token's place being the first; each head has its own keys.
    """

    def __init__(self, tokens: int, num_heads: int, width: int) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.zeros(num_heads, 2 * tokens - 1, width // num_heads))

    def forward(self, q: Tensor) -> Tensor:
        """Logits [B, H, L, L], not yet scaled, for queries [B, H, L, K]."""
        tokens = q.shape[2]
        by_offset = q @ self.keys.transpose(-2, -1)  # [B, H, L, 2 L - 1]
        places = torch.arange(tokens, device=q.device)
        offsets = places[:, None] - places[None, :] + tokens - 1
        return by_offset.gather(-1, offsets.expand(*q.shape[:2], -1, -1))


def sincos_1d(grid: tuple[int, int], prefix_tokens: int, width: int) -> Tensor:
    """Sines, then cosines, of the place in the sequence, [1, L, D] (arXiv:1706.03762, 3.5)."""
    places = torch.arange(prefix_tokens + grid[0] * grid[1], dtype=torch.float64)
    waves = places[:, None] * _frequencies(width // 2, width // 2)
    return torch.cat([waves.sin(), waves.cos()], dim=1).float()[None]


def sincos_2d(grid: tuple[int, int], prefix_tokens: int, width: int) -> Tensor:
    """Sines and cosines of column, then of row, [1, L, D], zero before the patches (big_vision `models/vit.py`)."""
    rows, columns = (torch.arange(size, dtype=torch.float64) for size in grid)
    frequencies = _frequencies(width // 4, width // 4 - 1)
    x = (columns[:, None] * frequencies).repeat(grid[0], 1)
    y = (rows[:, None] * frequencies).repeat_interleave(grid[1], dim=0)
    patches = torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1).float()
    return torch.cat([torch.zeros(prefix_tokens, width), patches])[None]


def _frequencies(count: int, last: int) -> Tensor:
    """From 1 down to about 1 / 10,000: 10,000^(-i / last)."""
    return 10_000.0 ** -(torch.arange(count, dtype=torch.float64) / max(1, last))
