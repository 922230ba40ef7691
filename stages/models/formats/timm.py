"""Files as timm has them on Hugging Face's hub: `model.safetensors`, and `config.json` with the network's arguments.

`timm.create_model("local-dir:FOLDER")` loads such a folder (timm `models/_hub.py`).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from cluster.errors import UserError
from stages.models.formats.arrays import Part, View
from stages.models.formats.assemble import Beside, Found, Overrides, assemble, read_settings, write_settings
from stages.models.formats.network import OWN_KEY, Network
from stages.models.formats.safetensors_file import SafetensorsFile, write_safetensors
from stages.models.formats.safetensors_names import TELLTALES, rules

USUAL = {"activation": "gelu", "layer_norm_epsilon": 1e-6}
"""timm's GELU is the exact one."""
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


def read(folder: Path, file: Path, overrides: Overrides) -> Found:
    """A network from a file of arrays and from `config.json` in its folder, where there is one. Raises UserError."""
    opened = SafetensorsFile(file)
    view = View(opened, {name: Part(name) for name in opened.shapes})
    settings = read_settings(folder / CONFIG) or {}
    beside = _beside(settings).with_own(CONFIG, settings.get(OWN_KEY))
    return assemble("timm", view, TELLTALES, lambda config, head: rules(config, head=head), beside, overrides)


def _beside(settings: dict[str, Any]) -> Beside:
    arguments, pretrained = settings.get("model_args") or {}, settings.get("pretrained_cfg") or {}
    if not isinstance(arguments, dict) or not isinstance(pretrained, dict):
        raise UserError(f"{CONFIG}: expected mappings model_args and pretrained_cfg")
    architecture = str(settings.get("architecture", ""))
    unknown = [name for name in arguments if name not in KNOWN]
    if unknown or "quickgelu" in architecture or arguments.get("fc_norm"):
        what = ", ".join(unknown) or ("fc_norm" if arguments.get("fc_norm") else architecture)
        raise UserError(f"{CONFIG}: {what}: that is another network than a Vision Transformer of ours")
    said = {ours: arguments[theirs] for ours, theirs in _SAME.items() if theirs in arguments}
    if "act_layer" in arguments:
        said["activation"] = _one_of("act_layer", arguments["act_layer"], {"gelu": "gelu", "gelu_tanh": "gelu_tanh"})
    if "global_pool" in arguments:
        said["pool"] = _one_of("global_pool", arguments["global_pool"], {name: ours for ours, name in POOLS.items()})
    if arguments.get("pos_embed") in ("none", ""):
        said["position"] = "none"
    names = settings.get("label_names", pretrained.get("label_names"))
    size = pretrained.get("input_size")
    stated = arguments.get("img_size", size[-1] if isinstance(size, list) and size else None)
    return Beside(
        usual=USUAL,
        said=said,
        resolution=stated,
        num_classes=settings.get("num_classes") or None,
        classes=tuple(map(str, names)) if isinstance(names, list) else None,
    )


_SAME = {"width": "embed_dim", "depth": "depth", "num_heads": "num_heads", "patch_size": "patch_size",
         "in_channels": "in_chans"}  # fmt: skip


def _one_of(name: str, value: Any, known: dict[str, str]) -> str:
    if value not in known:
        raise UserError(f"{CONFIG}: {name}: got {value!r}, expected one of {', '.join(known)}")
    return known[value]


def write(network: Network, folder: Path) -> list[Path]:
    """A folder that timm loads; returns its files."""
    write_safetensors(folder / WEIGHTS, network.state)
    write_settings(folder / CONFIG, config(network))
    return [folder / WEIGHTS, folder / CONFIG]


def config(network: Network) -> dict[str, Any]:
    """timm's `config.json` of a network, with our description under a key of our own."""
    own = network.config
    size = SIZES.get(own.variant or "", "base")
    patch = min(PATCHES[size], key=lambda known: (known != own.patch_size, abs(known - own.patch_size)))
    names = {"label_names": list(network.classes)} if network.classes is not None else {}
    return {
        "architecture": f"vit_{size}_patch{patch}_224",
        "num_classes": network.num_classes,
        "num_features": own.width,
        "global_pool": POOLS[own.pool],
        "model_args": {
            "img_size": network.resolution,
            "patch_size": own.patch_size,
            "in_chans": own.in_channels,
            "embed_dim": own.width,
            "depth": own.depth,
            "num_heads": own.num_heads,
            "mlp_ratio": mlp_ratio(own.width, own.mlp_dim),
            "class_token": own.pool == "token",
            "global_pool": POOLS[own.pool],
            # Ours is before the mean over the tokens, timm's usual one after it.
            "fc_norm": False,
            "act_layer": own.activation,
            "pos_embed": "none" if own.position == "none" else "learn",
        },
        "pretrained_cfg": {
            "num_classes": network.num_classes,
            "input_size": [own.in_channels, network.resolution, network.resolution],
            "pool_size": None,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": [0.5] * own.in_channels,
            "std": [0.5] * own.in_channels,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            **names,
        },
        OWN_KEY: network.description(),
    }


def mlp_ratio(width: int, mlp_dim: int) -> float:
    """The factor of which timm makes `int(width * factor)`: rounding may not lose one."""
    ratio = mlp_dim / width
    return ratio if int(width * ratio) == mlp_dim else math.nextafter(ratio, math.inf)
