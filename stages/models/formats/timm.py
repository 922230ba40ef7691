"""Files as timm has them on Hugging Face's hub: `model.safetensors`, and `config.json` with the network's arguments.

`timm.create_model("local-dir:FOLDER")` loads such a folder (timm `models/_hub.py`).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from cluster.errors import UserError
from stages.models.config import ModelConfig
from stages.models.formats.arrays import Part, View
from stages.models.formats.assemble import Found, Layout, assemble
from stages.models.formats.beside import Beside, Overrides, read_settings, write_settings
from stages.models.formats.network import OWN_KEY, Network
from stages.models.formats.rules import outward
from stages.models.formats.safetensors_file import write_safetensors
from stages.models.formats.safetensors_names import BIT, TELLTALES, TIMM_BIT, timm_rules
from stages.models.formats.sharded_file import open_arrays
from stages.models.formats.timm_resnets import EPSILON, GROUP_NORM_EPSILON, bit_name, hybrid_name
from stages.models.resnet_config import BitConfig

USUAL = {"activation": "gelu", "layer_norm_epsilon": 1e-6}
"""timm's GELU is the exact one."""
USUAL_BIT = {"epsilon": EPSILON, "group_norm_epsilon": GROUP_NORM_EPSILON}
USUAL_STEM = {**USUAL_BIT, "epsilon_of": "variance"}
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
SIZES = {"Ti": "tiny", "S": "small", "B": "base", "L": "large", "H": "huge", "g": "giant", "G": "gigantic"}
PATCHES = {"tiny": (16,), "small": (32, 16, 8), "base": (32, 16, 8), "large": (32, 16, 14), "huge": (14,),
           "giant": (14,), "gigantic": (14,)}  # fmt: skip
"""Sides of patches with which timm has these sizes; others are said beside the next best name."""
POOLS = {"token": "token", "average": "avg", "attention": "map"}
KNOWN = (
    *("img_size", "patch_size", "in_chans", "num_classes", "global_pool", "embed_dim", "depth", "num_heads"),
    *("mlp_ratio", "class_token", "no_embed_class", "fc_norm", "act_layer", "pos_embed", "dynamic_img_size"),
    *("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "weight_init"),
)
"""Arguments of timm's networks that we know what to make of; any other might make it another network."""
KNOWN_BIT = ("in_chans", "num_classes", "global_pool", "drop_rate", "drop_path_rate")


def read(folder: Path, file: Path, overrides: Overrides) -> Found:
    """A network from a file of arrays and from `config.json` in its folder, where there is one. Raises UserError."""
    opened = open_arrays(file)
    view = View(opened, {name: Part(name) for name in opened.shapes})
    settings = read_settings(folder / CONFIG) or {}
    bit = BIT.has(view)
    beside = _beside(settings, bit).with_own(CONFIG, settings.get(OWN_KEY))
    layout = Layout(telltales=TIMM_BIT if bit else TELLTALES, rules=timm_rules)
    return assemble("timm", view, layout, beside, overrides)


def _beside(settings: dict[str, Any], bit: bool) -> Beside:
    arguments, pretrained = settings.get("model_args") or {}, settings.get("pretrained_cfg") or {}
    if not isinstance(arguments, dict) or not isinstance(pretrained, dict):
        raise UserError(f"{CONFIG}: expected mappings model_args and pretrained_cfg")
    _check_arguments(str(settings.get("architecture", "")), arguments, bit)
    names = settings.get("label_names", pretrained.get("label_names"))
    size = pretrained.get("input_size")
    return Beside(
        usual=USUAL_BIT if bit else USUAL,
        usual_stem=USUAL_STEM,
        said={"in_channels": arguments["in_chans"]} if bit and "in_chans" in arguments else _said(arguments),
        resolution=arguments.get("img_size", size[-1] if isinstance(size, list) and size else None),
        num_classes=settings.get("num_classes") or None,
        classes=tuple(map(str, names)) if isinstance(names, list) else None,
    )


def _check_arguments(architecture: str, arguments: dict[str, Any], bit: bool) -> None:
    """Raise UserError where they make another network than ours."""
    unknown = [name for name in arguments if name not in (KNOWN_BIT if bit else KNOWN)]
    if bit and architecture and not (architecture.startswith("resnetv2_") and "_bit" in architecture):
        unknown.append(architecture)
    if bit and arguments.get("global_pool", "avg") != "avg":
        unknown.append(f"global_pool={arguments['global_pool']}")
    if not bit and arguments.get("fc_norm"):
        unknown.append("fc_norm")
    if "quickgelu" in architecture:
        unknown.append(architecture)
    if unknown:
        ours = "a BiT ResNet" if bit else "a Vision Transformer"
        raise UserError(f"{CONFIG}: {', '.join(unknown)}: that is another network than {ours} of ours")


def _said(arguments: dict[str, Any]) -> dict[str, Any]:
    said = {ours: arguments[theirs] for ours, theirs in _SAME.items() if theirs in arguments}
    if "act_layer" in arguments:
        said["activation"] = _one_of("act_layer", arguments["act_layer"], {"gelu": "gelu", "gelu_tanh": "gelu_tanh"})
    if "global_pool" in arguments:
        said["pool"] = _one_of("global_pool", arguments["global_pool"], {name: ours for ours, name in POOLS.items()})
    if arguments.get("pos_embed") in ("none", ""):
        said["position"] = "none"
    return said


_SAME = {"width": "embed_dim", "depth": "depth", "num_heads": "num_heads", "patch_size": "patch_size",
         "in_channels": "in_chans"}  # fmt: skip


def _one_of(name: str, value: Any, known: dict[str, str]) -> str:
    if value not in known:
        raise UserError(f"{CONFIG}: {name}: got {value!r}, expected one of {', '.join(known)}")
    return known[value]


def write(network: Network, folder: Path) -> list[Path]:
    """A folder that timm loads; returns its files."""
    rules = timm_rules(network.config, bool(network.num_classes))
    # None of these rules takes heads apart.
    write_safetensors(folder / WEIGHTS, outward(rules, network.state, 1))
    write_settings(folder / CONFIG, config(network))
    return [folder / WEIGHTS, folder / CONFIG]


def config(network: Network) -> dict[str, Any]:
    """timm's `config.json` of a network, with our description under a key of our own. Raises UserError."""
    own = network.config
    names = {"label_names": list(network.classes)} if network.classes is not None else {}
    pool = "avg" if isinstance(own, BitConfig) else POOLS[own.pool]
    architecture, arguments, first = _bit(own) if isinstance(own, BitConfig) else _vit(own, network.resolution)
    return {
        "architecture": architecture,
        "num_classes": network.num_classes,
        "num_features": own.features,
        "global_pool": pool,
        "model_args": {**arguments, "in_chans": own.in_channels, "global_pool": pool},
        "pretrained_cfg": {
            "num_classes": network.num_classes,
            "input_size": [own.in_channels, network.resolution, network.resolution],
            "pool_size": None,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": [0.5] * own.in_channels,
            "std": [0.5] * own.in_channels,
            "first_conv": first,
            "classifier": "head.fc" if isinstance(own, BitConfig) else "head",
            **names,
        },
        OWN_KEY: network.description(),
    }


def _bit(own: BitConfig) -> tuple[str, dict[str, Any], str]:
    """Architecture, its arguments, and the name of the first convolution."""
    return bit_name(own), {}, "stem.conv"


def _vit(own: ModelConfig, resolution: int) -> tuple[str, dict[str, Any], str]:
    arguments = {
        "img_size": resolution,
        "patch_size": own.patch_size,
        "embed_dim": own.width,
        "depth": own.depth,
        "num_heads": own.num_heads,
        "mlp_ratio": mlp_ratio(own.width, own.mlp_dim),
        "class_token": own.pool == "token",
        # Ours is before the mean over the tokens, timm's usual one after it.
        "fc_norm": False,
        "act_layer": own.activation,
        "pos_embed": "none" if own.position == "none" else "learn",
    }
    if own.stem is not None:
        first = "patch_embed.backbone.stem.conv" if own.stem.blocks else "patch_embed.backbone.conv"
        return hybrid_name(own, own.stem, resolution), arguments, first
    size = SIZES.get(own.variant or "", "base")
    patch = min(PATCHES[size], key=lambda known: (known != own.patch_size, abs(known - own.patch_size)))
    return f"vit_{size}_patch{patch}_224", arguments, "patch_embed.proj"


def mlp_ratio(width: int, mlp_dim: int) -> float:
    """The factor of which timm makes `int(width * factor)`: rounding may not lose one."""
    ratio = mlp_dim / width
    return ratio if int(width * ratio) == mlp_dim else math.nextafter(ratio, math.inf)
