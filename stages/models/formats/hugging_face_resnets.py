"""Hugging Face's settings of ResNets: BiT whole (`BitConfig` there), and the backbone of a hybrid (`ViTHybridConfig`).

transformers `models/bit/configuration_bit.py` and `models/deprecated/vit_hybrid/`, which versions after 4 do not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.errors import UserError
from stages.models.config import ModelConfig
from stages.models.formats.beside import Beside
from stages.models.formats.network import Network
from stages.models.formats.timm_resnets import EPSILON, GROUP_NORM_EPSILON
from stages.models.resnet_config import GROUPS, BitConfig, StemConfig

USUAL_BIT = {"epsilon": EPSILON, "group_norm_epsilon": GROUP_NORM_EPSILON}
"""Theirs are those of timm, and their settings have no place for others."""
USUAL_STEM = {**USUAL_BIT, "epsilon_of": "variance"}
_ALL = {"hidden_act": ("relu", "relu"), "num_groups": (GROUPS, GROUPS), "output_stride": (32, 32)}
_OF_BIT = {**_ALL, "layer_type": ("preactivation", "preactivation"), "global_padding": (None, None),
           "embedding_dynamic_padding": (False, False)}  # fmt: skip
_OF_STEM = {**_ALL, "layer_type": ("bottleneck", "preactivation"), "global_padding": ("SAME", None),
            "embedding_dynamic_padding": (True, False)}  # fmt: skip
"""What ours has, and what theirs has where nothing is said."""


def read_stem(where: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What is said of a hybrid's ResNet, as fields of `StemConfig`. Raises UserError where it is another than ours."""
    backbone = settings.get("backbone_config")
    if backbone is None:
        # The ResNet of the only one that they have published (google/vit-hybrid-base-bit-384).
        return {**USUAL_STEM, "blocks": (3, 4, 9)}
    if not isinstance(backbone, Mapping):
        raise UserError(f"{where}: backbone_config: got {backbone!r}, expected a mapping")
    if backbone.get("model_type", "bit") != "bit":
        raise UserError(f"{where}: backbone_config: model_type: got {backbone['model_type']!r}, expected 'bit'")
    _check(f"{where}: backbone_config", backbone, _OF_STEM)
    depths = backbone.get("depths", [3, 4, 6, 3])
    last = f"stage{len(depths)}" if isinstance(depths, list) and depths else "stem"
    if backbone.get("out_features") not in (None, [last]):
        raise UserError(f"{where}: backbone_config: out_features: got {backbone['out_features']!r}, expected {[last]}")
    return {**USUAL_STEM, "blocks": depths}


def read_bit(where: str, settings: dict[str, Any], preprocessor: dict[str, Any]) -> Beside:
    """What is said of a BiT. Raises UserError where it is another ResNet than ours."""
    _check(where, settings, _OF_BIT)
    said = {ours: settings[theirs] for ours, theirs in (("blocks", "depths"), ("in_channels", "num_channels"))
            if theirs in settings}  # fmt: skip
    return Beside(usual={}, said={**USUAL_BIT, **said} if settings else said, resolution=_size(preprocessor))


def _check(where: str, settings: Mapping[str, Any], expected: dict[str, tuple[Any, Any]]) -> None:
    for name, (own, usual) in expected.items():
        found = settings.get(name, usual)
        if (found.upper() if name == "global_padding" and isinstance(found, str) else found) != own:
            raise UserError(f"{where}: {name}: got {found!r}, expected {own!r}, which is what ours has")


def _size(preprocessor: dict[str, Any]) -> Any:
    """Side of the images that a file is meant for: the network itself takes any."""
    for name in ("crop_size", "size"):
        size = preprocessor.get(name)
        if isinstance(size, dict) and "height" in size:
            return size["height"]
        if isinstance(size, int):
            return size
    return None


def bit_settings(config: BitConfig) -> dict[str, Any]:
    """What their `config.json` says of a BiT besides its classes."""
    return {
        **_resnet(config, config.in_channels),
        "layer_type": "preactivation",
        "global_padding": None,
        "embedding_dynamic_padding": False,
    }


def hybrid_settings(config: ModelConfig, stem: StemConfig, network: Network) -> dict[str, Any]:
    """What their `config.json` says of a hybrid besides what it says of any Vision Transformer."""
    side = network.resolution // stem.stride
    return {
        "model_type": "vit-hybrid",
        "backbone_config": {
            **_resnet(stem, config.in_channels),
            "layer_type": "bottleneck",
            "global_padding": "SAME",
            "embedding_dynamic_padding": True,
            "out_features": [f"stage{len(stem.blocks)}" if stem.blocks else "stem"],
        },
        "backbone_featmap_shape": [1, stem.channels, side, side],
    }


def _resnet(config: BitConfig | StemConfig, in_channels: int) -> dict[str, Any]:
    root = 64 * config.width_factor
    return {
        "model_type": "bit",
        "num_channels": in_channels,
        # Multiplied out: their own width_factor leaves the last norm and layer as narrow as they were.
        "embedding_size": root,
        "hidden_sizes": [4 * root * 2**stage for stage in range(len(config.blocks))],
        "width_factor": 1,
        "depths": list(config.blocks),
        "hidden_act": "relu",
        "num_groups": GROUPS,
        "output_stride": 32,
        "drop_path_rate": 0.0,
    }
