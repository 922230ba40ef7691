"""Parameters and multiply-adds of the networks, by formula. Light: no torch here."""

from __future__ import annotations

from stages.models.config import AnyModel, ModelConfig
from stages.models.masked_config import MaskedConfig
from stages.models.resnet_config import BitConfig
from stages.models.resnet_flops import bit_macs, bit_parameters, stem_macs, stem_parameters


def parameter_count(config: AnyModel, resolution: int, num_classes: int) -> int:
    """Number of trained parameters."""
    if isinstance(config, BitConfig):
        return bit_parameters(config, num_classes)
    width = config.width
    stem = patch_parameters(config)
    stem += stem_parameters(config.stem, config.in_channels) if config.stem is not None else 0
    embeddings = width if config.pool == "token" else 0
    embeddings += _position_parameters(config, resolution) if config.position_at != "each_layer" else 0
    pool = width + _attention(config) + 2 * width + _dense(config) if config.pool == "attention" else 0
    hidden = width * width + width if config.head != "linear" else 0
    after = 2 * width + pool + hidden + width * num_classes + num_classes
    return stem + embeddings + config.depth * block_parameters(config, resolution) + after


def block_parameters(config: ModelConfig, resolution: int) -> int:
    """Those of one block of a Vision Transformer, with its own position embeddings, where it has any."""
    own = 0
    if config.position_at == "each_layer":
        own = _position_parameters(config, resolution)
    elif config.position == "relative":
        own = (2 * config.tokens(resolution) - 1) * config.width
    return 4 * config.width + _attention(config) + _dense(config) + own


def _attention(config: ModelConfig) -> int:
    return 4 * config.width**2 + 4 * config.width


def _dense(config: ModelConfig) -> int:
    return 2 * config.width * config.mlp_dim + config.mlp_dim + config.width


def patch_parameters(config: ModelConfig) -> int:
    """Those of the patches' linear map."""
    return config.patch_size**2 * _patch_channels(config) * config.width + config.width


def _patch_channels(config: ModelConfig) -> int:
    """Of what patches are cut from: the image, or a stem's map."""
    return config.in_channels if config.stem is None else config.stem.channels


def _position_parameters(config: ModelConfig, resolution: int) -> int:
    """Of embeddings that are added once."""
    match config.position:
        case "learned":
            return config.tokens(resolution) * config.width
        case "learned_2d":
            return (config.grid(resolution) + config.prefix_tokens) * config.width
        case _:
            return 0


def forward_macs(config: AnyModel, resolution: int, num_classes: int) -> int:
    """Multiply-adds of one image's forward pass, the matrix products alone.

    n (4 w² + 2 w m) depth + 2 n² w depth + N · channels · P² · w, with n tokens of width w, N patches of
    side P and MLPs of size m, the head, and a hybrid's stem before. Forward and backward together cost
    three times that, at two operations each; with it the exaFLOPs of the paper's Table 6 come out for
    B/16, L/32, L/16 and H/14 and for the hybrids (for B/32 they are 56, where the table has 55, and for
    R50+L/16 after 7 epochs 834, where it has 859, but 1668 after 14); for ResNets see `resnet_flops.bit_macs`.
    """
    if isinstance(config, BitConfig):
        return bit_macs(config, resolution, num_classes)
    width, tokens, patches = config.width, config.tokens(resolution), config.grid(resolution) ** 2
    blocks = config.depth * (tokens * (4 * width**2 + 2 * width * config.mlp_dim) + 2 * tokens**2 * width)
    relative = config.depth * tokens * (2 * tokens - 1) * width if config.position == "relative" else 0
    stem = patches * _patch_channels(config) * config.patch_size**2 * width
    stem += stem_macs(config.stem, config.in_channels, resolution) if config.stem is not None else 0
    pool = 2 * (tokens + 1) * width**2 + 2 * tokens * width + 2 * width * config.mlp_dim
    hidden = width * width if config.head != "linear" else 0
    after = (pool if config.pool == "attention" else 0) + hidden + width * num_classes
    return blocks + relative + stem + after


def masked_parameters(config: ModelConfig, masked: MaskedConfig) -> int:
    """Trained parameters that predicting masked patches adds: the mask's embedding and the head."""
    return config.width + masked_head_parameters(config, masked)


def masked_head_parameters(config: ModelConfig, masked: MaskedConfig) -> int:
    """Those of the head alone."""
    return (config.width + 1) * masked.outputs(config)


def masked_macs(config: ModelConfig, resolution: int, masked: MaskedConfig) -> int:
    """Multiply-adds that it adds to one image's forward pass: the head, for the corrupted patches alone."""
    corrupted = masked.corrupted(config.grid(resolution) ** 2)
    return corrupted * config.width * masked.outputs(config)
