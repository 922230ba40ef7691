"""Parameters and multiply-adds of a Vision Transformer, by formula. Light: no torch here."""

from __future__ import annotations

from stages.models.config import ModelConfig


def parameter_count(config: ModelConfig, resolution: int, num_classes: int) -> int:
    """Number of trained parameters."""
    width, mlp = config.width, config.mlp_dim
    tokens = _tokens(config, resolution)
    stem = config.patch_size**2 * config.in_channels * width + width
    embeddings = tokens * width + (width if config.pool == "token" else 0)
    attention = 4 * width * width + 4 * width
    block = 4 * width + attention + 2 * width * mlp + mlp + width
    hidden = width * width + width if config.head == "mlp_tanh" else 0
    return stem + embeddings + config.depth * block + 2 * width + hidden + width * num_classes + num_classes


def forward_macs(config: ModelConfig, resolution: int, num_classes: int) -> int:
    """Multiply-adds of one image's forward pass, the matrix products alone.

    n (4 w² + 2 w m) depth + 2 n² w depth + N · channels · P² · w, with n tokens of width w, N patches of
    side P and MLPs of size m, and the head. Forward and backward together cost three times that, at two
    operations each; with it the exaFLOPs of the paper's Table 6 come out for B/16, L/32, L/16 and H/14
    (for B/32 they are 56, where the table has 55).
    """
    width, tokens, patches = config.width, _tokens(config, resolution), config.grid(resolution) ** 2
    blocks = config.depth * (tokens * (4 * width**2 + 2 * width * config.mlp_dim) + 2 * tokens**2 * width)
    stem = patches * config.in_channels * config.patch_size**2 * width
    hidden = width * width if config.head == "mlp_tanh" else 0
    return blocks + stem + hidden + width * num_classes


def _tokens(config: ModelConfig, resolution: int) -> int:
    return config.grid(resolution) ** 2 + (1 if config.pool == "token" else 0)
