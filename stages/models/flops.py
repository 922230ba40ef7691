"""Parameters and multiply-adds of a Vision Transformer, by formula. Light: no torch here."""

from __future__ import annotations

from stages.models.config import ModelConfig


def parameter_count(config: ModelConfig, resolution: int, num_classes: int) -> int:
    """Number of trained parameters."""
    width, mlp = config.width, config.mlp_dim
    stem = config.patch_size**2 * config.in_channels * width + width
    embeddings = _position_parameters(config, resolution) + (width if config.pool == "token" else 0)
    attention = 4 * width * width + 4 * width
    dense = 2 * width * mlp + mlp + width
    block = 4 * width + attention + dense
    pool = width + attention + 2 * width + dense if config.pool == "attention" else 0
    hidden = width * width + width if config.head != "linear" else 0
    return stem + embeddings + config.depth * block + 2 * width + pool + hidden + width * num_classes + num_classes


def _position_parameters(config: ModelConfig, resolution: int) -> int:
    tokens, times = config.tokens(resolution), config.depth if config.position_at == "each_layer" else 1
    match config.position:
        case "learned":
            return times * tokens * config.width
        case "learned_2d":
            return times * (config.grid(resolution) + config.prefix_tokens) * config.width
        case "relative":
            return config.depth * (2 * tokens - 1) * config.width
        case _:
            return 0


def forward_macs(config: ModelConfig, resolution: int, num_classes: int) -> int:
    """Multiply-adds of one image's forward pass, the matrix products alone.

    n (4 w² + 2 w m) depth + 2 n² w depth + N · channels · P² · w, with n tokens of width w, N patches of
    side P and MLPs of size m, and the head. Forward and backward together cost three times that, at two
    operations each; with it the exaFLOPs of the paper's Table 6 come out for B/16, L/32, L/16 and H/14
    (for B/32 they are 56, where the table has 55).
    """
    width, tokens, patches = config.width, config.tokens(resolution), config.grid(resolution) ** 2
    blocks = config.depth * (tokens * (4 * width**2 + 2 * width * config.mlp_dim) + 2 * tokens**2 * width)
    relative = config.depth * tokens * (2 * tokens - 1) * width if config.position == "relative" else 0
    stem = patches * config.in_channels * config.patch_size**2 * width
    pool = 2 * (tokens + 1) * width**2 + 2 * tokens * width + 2 * width * config.mlp_dim
    hidden = width * width if config.head != "linear" else 0
    after = (pool if config.pool == "attention" else 0) + hidden + width * num_classes
    return blocks + relative + stem + after
