"""Folders as Hugging Face's transformers has them: `config.json`, `preprocessor_config.json`, `model.safetensors`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.errors import UserError
from stages.models.config import AnyModel, ModelConfig
from stages.models.formats.arrays import ArrayFile, Part, View
from stages.models.formats.assemble import Found, Layout, assemble
from stages.models.formats.beside import Beside, Overrides, read_settings, write_settings
from stages.models.formats.hugging_face_names import BIT, BIT_BODY, BIT_TELLTALES, BODY, TELLTALES, rules_of
from stages.models.formats.hugging_face_resnets import (
    USUAL_BIT,
    USUAL_STEM,
    bit_settings,
    hybrid_settings,
    read_bit,
    read_stem,
)
from stages.models.formats.network import OWN_KEY, Network
from stages.models.formats.rules import outward
from stages.models.formats.safetensors_file import write_safetensors
from stages.models.formats.sharded_file import open_arrays
from stages.models.resnet_config import BitConfig

USUAL = {"activation": "gelu", "layer_norm_epsilon": 1e-12}
"""What their library makes of a config.json that does not say (transformers `configuration_vit.py`)."""
WEIGHTS, CONFIG, PREPROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"
ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
_SAME = {
    "width": "hidden_size", "depth": "num_hidden_layers", "num_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size", "patch_size": "patch_size", "in_channels": "num_channels",
    "layer_norm_epsilon": "layer_norm_eps",
}  # fmt: skip


def read(folder: Path, file: Path, overrides: Overrides) -> Found:
    """A network from a file of arrays and from `config.json` in its folder, where there is one. Raises UserError."""
    view = _view(open_arrays(file))
    settings = read_settings(folder / CONFIG) or {}
    bit = BIT.has(view)
    beside = _bit_beside(folder, settings) if bit else _beside(settings)
    beside = beside.with_own(CONFIG, settings.get(OWN_KEY))
    layout = Layout(telltales=BIT_TELLTALES if bit else TELLTALES, rules=rules_of)
    return assemble("hf", view, layout, beside, overrides)


def _view(opened: ArrayFile) -> View:
    """A file under the names of one with a last layer: those of a body alone begin later."""
    body = BIT_BODY if any(name.removeprefix(BIT_BODY).startswith("embedder.") for name in opened.shapes) else BODY
    alone = not any(name.startswith(body) for name in opened.shapes)
    longer = {name: f"{body}{name}" if alone and not name.startswith("classifier.") else name for name in opened.shapes}
    return View(opened, {longer[name]: Part(name) for name in opened.shapes})


def _bit_beside(folder: Path, settings: dict[str, Any]) -> Beside:
    if settings.get("model_type", "bit") != "bit":
        raise UserError(f"{CONFIG}: model_type: got {settings['model_type']!r}, and the arrays are those of 'bit'")
    found = read_bit(CONFIG, settings, read_settings(folder / PREPROCESSOR) or {})
    return replace(found, usual=USUAL_BIT, classes=_labels(settings))


def _beside(settings: dict[str, Any]) -> Beside:
    kind = settings.get("model_type", "vit")
    if kind not in ("vit", "vit-hybrid"):
        raise UserError(f"{CONFIG}: model_type: got {kind!r}, expected 'vit', or 'vit-hybrid' or 'bit'")
    if settings.get("qkv_bias", True) is not True:
        raise UserError(f"{CONFIG}: qkv_bias: got {settings['qkv_bias']!r}, expected true: ours has biases there")
    if settings.get("pooler_act", "tanh") != "tanh":
        raise UserError(f"{CONFIG}: pooler_act: got {settings['pooler_act']!r}, expected 'tanh'")
    said = {ours: settings[theirs] for ours, theirs in _SAME.items() if theirs in settings}
    if "hidden_act" in settings:
        if settings["hidden_act"] not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise UserError(f"{CONFIG}: hidden_act: got {settings['hidden_act']!r}, expected one of {known}")
        said["activation"] = ACTIVATIONS[settings["hidden_act"]]
    if "model_type" in settings:
        said["stem"] = read_stem(CONFIG, settings) if kind == "vit-hybrid" else None
    return Beside(
        usual=USUAL, usual_stem=USUAL_STEM, said=said, resolution=settings.get("image_size"), classes=_labels(settings)
    )


def _labels(settings: dict[str, Any]) -> tuple[str, ...] | None:
    """Names of the classes; none where they are what transformers makes up of their numbers."""
    labels = settings.get("id2label")
    if not isinstance(labels, dict) or set(labels) != {str(number) for number in range(len(labels))}:
        return None
    names = tuple(str(labels[str(number)]) for number in range(len(labels)))
    made_up = all(name == f"LABEL_{number}" for number, name in enumerate(names))
    return None if made_up else names


def write(network: Network, folder: Path) -> list[Path]:
    """A folder that `from_pretrained` of the class in `architectures` loads; returns its files."""
    # None of these rules takes heads apart.
    arrays = outward(rules_of(network.config, bool(network.num_classes)), network.state, 1)
    write_safetensors(folder / WEIGHTS, arrays)
    write_settings(folder / CONFIG, config(network))
    write_settings(folder / PREPROCESSOR, preprocessor(network))
    return [folder / WEIGHTS, folder / CONFIG, folder / PREPROCESSOR]


def config(network: Network) -> dict[str, Any]:
    """Their `config.json` of a network, every field written out, with our description under a key of our own."""
    own = network.config
    names = network.classes or tuple(f"LABEL_{number}" for number in range(network.num_classes))
    return {
        "architectures": [architecture(own)],
        **(bit_settings(own) if isinstance(own, BitConfig) else _vit(own, network)),
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
        "torch_dtype": "float32",
        OWN_KEY: network.description(),
    }


def architecture(config: AnyModel) -> str:
    """Their class of such networks."""
    if isinstance(config, BitConfig):
        return "BitForImageClassification"
    return "ViTForImageClassification" if config.stem is None else "ViTHybridForImageClassification"


def _vit(own: ModelConfig, network: Network) -> dict[str, Any]:
    return {
        "model_type": "vit",
        "hidden_size": own.width,
        "num_hidden_layers": own.depth,
        "num_attention_heads": own.num_heads,
        "intermediate_size": own.mlp_dim,
        "hidden_act": "gelu_pytorch_tanh" if own.activation == "gelu_tanh" else "gelu",
        "hidden_dropout_prob": own.dropout,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": own.layer_norm_epsilon,
        "image_size": network.resolution,
        "patch_size": own.patch_size,
        "num_channels": own.in_channels,
        "qkv_bias": True,
        "encoder_stride": own.patch_size,
        "pooler_act": "tanh",
        "pooler_output_size": own.width,
        **(hybrid_settings(own, own.stem, network) if own.stem is not None else {}),
    }


def preprocessor(network: Network) -> dict[str, Any]:
    """What is done to images: the whole of each, at the network's size, from -1 to 1."""
    size = {"height": network.resolution, "width": network.resolution}
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": size,
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * network.config.in_channels,
        "image_std": [0.5] * network.config.in_channels,
    }
