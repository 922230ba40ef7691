"""Which of timm's hybrids and BiT ResNets a network of ours is: names alone say their ResNets there.

timm `models/vision_transformer_hybrid.py` and `models/resnetv2.py`. Sizes of a hybrid's transformer are arguments.
"""

from __future__ import annotations

from cluster.errors import UserError
from stages.models.config import ModelConfig
from stages.models.resnet_config import BLOCKS, BitConfig, StemConfig

EPSILON, GROUP_NORM_EPSILON = 1e-8, 1e-5
"""Added to the variance of all kernels, and in GroupNorm: timm has no argument for either, nor have transformers."""
HYBRIDS: dict[tuple[int, ...], dict[str, str]] = {
    # By the stem's blocks; by size, of which the first is taken where there is none of the size.
    (): {"Ti": "vit_tiny_r_s16_p8"},
    (2, 2, 2, 2): {"S": "vit_small_r26_s32", "B": "vit_base_r26_s32"},
    (3, 4, 9): {"B": "vit_base_r50_s16"},
    (3, 4, 6, 3): {"L": "vit_large_r50_s32"},
}
ONE_RESOLUTION = ("vit_base_r26_s32",)
"""Those that timm has for 224 pixels alone."""
BITS = {
    "R50x1": "resnetv2_50x1_bit",
    "R50x3": "resnetv2_50x3_bit",
    "R101x1": "resnetv2_101x1_bit",
    "R101x3": "resnetv2_101x3_bit",
    "R152x2": "resnetv2_152x2_bit",
    "R152x4": "resnetv2_152x4_bit",
}


def hybrid_name(config: ModelConfig, stem: StemConfig, resolution: int) -> str:
    """timm's architecture with this stem. Raises UserError where it has none."""
    if not has_stem(stem):
        known = ", ".join(str(list(blocks)) for blocks in HYBRIDS)
        raise UserError(
            f"timm has no hybrid whose ResNet has blocks={list(stem.blocks)}, width_factor={stem.width_factor}: it has "
            f"{known}, of width_factor=1; npz, hf and safetensors have a place for any"
        )
    sizes = HYBRIDS[stem.blocks]
    name = sizes.get(config.variant or "", next(iter(sizes.values())))
    return f"{name}_{384 if resolution == 384 and name not in ONE_RESOLUTION else 224}"


def bit_name(config: BitConfig) -> str:
    """timm's architecture of this BiT. Raises UserError where it has none."""
    if not has_bit(config):
        raise UserError(
            f"timm has no {config.title}: it has {', '.join(BITS)}; npz, hf and safetensors have a place for any"
        )
    return BITS[_short(config)]


def has_stem(stem: StemConfig) -> bool:
    """Whether timm has a hybrid with this ResNet."""
    return stem.blocks in HYBRIDS and stem.width_factor == 1


def has_bit(config: BitConfig) -> bool:
    """Whether timm has this BiT."""
    return _short(config) in BITS


def _short(config: BitConfig) -> str:
    layers = next((layers for layers, blocks in BLOCKS.items() if blocks == config.blocks), None)
    return f"R{layers}x{config.width_factor}"


def as_computed(config: ModelConfig | BitConfig) -> ModelConfig | BitConfig:
    """The network that timm and transformers compute with a network's weights: with their epsilons of ResNets."""
    own = {"epsilon": EPSILON, "group_norm_epsilon": GROUP_NORM_EPSILON}
    if isinstance(config, BitConfig):
        return config.model_copy(update=own)
    if config.stem is None:
        return config
    return config.model_copy(update={"stem": config.stem.model_copy(update={**own, "epsilon_of": "variance"})})


def epsilons_told(config: ModelConfig | BitConfig) -> str:
    """The epsilons of a network's ResNet, as people say them; nothing where it has none."""
    own = config if isinstance(config, BitConfig) else config.stem
    if own is None:
        return ""
    of = "variance" if isinstance(own, BitConfig) else own.epsilon_of
    return f"{own.epsilon:g} added to the {of} of kernels and {own.group_norm_epsilon:g} in GroupNorm"
