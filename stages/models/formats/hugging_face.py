"""Folders as Hugging Face's transformers has them: `config.json`, `preprocessor_config.json`, `model.safetensors`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.errors import UserError
from stages.models.formats.arrays import Part, View
from stages.models.formats.assemble import Beside, Found, Overrides, assemble, read_settings, write_settings
from stages.models.formats.hugging_face_names import BODY, TELLTALES, rules
from stages.models.formats.network import OWN_KEY, Network
from stages.models.formats.rules import outward
from stages.models.formats.safetensors_file import SafetensorsFile, write_safetensors

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
    opened = SafetensorsFile(file)
    body_alone = not any(name.startswith(BODY) for name in opened.shapes)
    view = View(
        opened,
        {f"{BODY}{name}" if body_alone and not name.startswith("classifier.") else name: Part(name)
         for name in opened.shapes},
    )  # fmt: skip
    settings = read_settings(folder / CONFIG) or {}
    beside = _beside(settings).with_own(CONFIG, settings.get(OWN_KEY))
    return assemble("hf", view, TELLTALES, lambda config, head: rules(config, head=head), beside, overrides)


def _beside(settings: dict[str, Any]) -> Beside:
    if settings.get("model_type", "vit") != "vit":
        raise UserError(f"{CONFIG}: model_type: got {settings['model_type']!r}, expected 'vit'")
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
    return Beside(usual=USUAL, said=said, resolution=settings.get("image_size"), classes=_labels(settings))


def _labels(settings: dict[str, Any]) -> tuple[str, ...] | None:
    """Names of the classes; none where they are what transformers makes up of their numbers."""
    labels = settings.get("id2label")
    if not isinstance(labels, dict) or set(labels) != {str(number) for number in range(len(labels))}:
        return None
    names = tuple(str(labels[str(number)]) for number in range(len(labels)))
    made_up = all(name == f"LABEL_{number}" for number, name in enumerate(names))
    return None if made_up else names


def write(network: Network, folder: Path) -> list[Path]:
    """A folder that `ViTForImageClassification.from_pretrained` loads; returns its files."""
    arrays = outward(rules(network.config), network.state, network.config.num_heads)
    write_safetensors(folder / WEIGHTS, arrays)
    write_settings(folder / CONFIG, config(network))
    write_settings(folder / PREPROCESSOR, preprocessor(network))
    return [folder / WEIGHTS, folder / CONFIG, folder / PREPROCESSOR]


def config(network: Network) -> dict[str, Any]:
    """Their `config.json` of a network, every field written out, with our description under a key of our own."""
    own = network.config
    names = network.classes or tuple(f"LABEL_{number}" for number in range(network.num_classes))
    return {
        "architectures": ["ViTForImageClassification"],
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
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
        "torch_dtype": "float32",
        OWN_KEY: network.description(),
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
