"""Which parts of a network a format has a place for, and a network without the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from cluster.errors import UserError
from stages.models.config import ModelConfig
from stages.models.formats.arrays import shown
from stages.models.formats.known import Format
from stages.models.formats.network import Network
from stages.models.formats.timm_resnets import bit_name, hybrid_name
from stages.models.masked import ARRAYS
from stages.models.resnet_config import BitConfig

HEADS = {"npz": ("linear", "mlp_tanh"), "timm": ("linear",), "hf": ("linear",)}
POSITIONS = {"npz": ("learned", "none"), "timm": ("learned", "none"), "hf": ("learned",)}
POOLS = {"npz": ("token", "average", "attention"), "timm": ("token", "average", "attention"), "hf": ("token",)}
EPSILON = {"timm": 1e-6}
"""The one that a format has, where its settings have no place for it."""


def fitted(network: Network, format: Format, *, drop: bool) -> tuple[Network, tuple[str, ...]]:
    """The network as a format can have it, and what was left out for that.

    Raises UserError naming what there is no place for, unless it is to be dropped; and where nothing of the network
    would be left without it. Epsilons of ResNets go along in our description alone: what a library's own make of the
    logits is measured (`parity`).
    """
    if format == "safetensors":
        return network, ()
    config = network.config
    update: dict[str, str] = {}
    placeless = [name for name in network.state if name.startswith(ARRAYS)]
    if format == "timm":
        _check_name(network)
    if isinstance(config, ModelConfig):
        _check_body(network, config, format)
        if config.head not in HEADS[format]:
            update["head"] = "linear"
            placeless += [name for name in network.state if name.startswith("pre_logits.")]
        if config.position not in POSITIONS[format] or config.position_at != "stem":
            update |= {"position": "learned" if format == "hf" else "none", "position_at": "stem"}
            placeless += list(_of_positions(network)) or [f"position={config.position}"]
    if not placeless:
        return network, ()
    if not drop:
        raise UserError(
            f"{format} has no place for {shown(placeless)}: --drop leaves it out, and the network is another"
        )
    return _without(network, update, placeless), tuple(placeless)


def _check_name(network: Network) -> None:
    """Raise UserError where timm has no network with this ResNet."""
    config = network.config
    if isinstance(config, BitConfig):
        bit_name(config)
    elif config.stem is not None:
        hybrid_name(config, config.stem, network.resolution)


def _check_body(network: Network, config: ModelConfig, format: Format) -> None:
    """Raise UserError where nothing of a Vision Transformer would be left without what there is no place for."""
    if config.pool not in POOLS[format]:
        why = (
            "its networks always have a class token" if config.pool == "average" else "nor a class token in place of it"
        )
        raise UserError(
            f"{format} has no place for {shown(list(_of_pool(network)) or ['the mean over tokens'])}: {why}"
        )
    if config.layer_norm_epsilon != EPSILON.get(format, config.layer_norm_epsilon):
        raise UserError(f"{format} has no place for layer_norm_epsilon={config.layer_norm_epsilon}: it is always "
                        f"{EPSILON[format]}")  # fmt: skip


def _without(network: Network, update: dict[str, str], placeless: list[str]) -> Network:
    config = network.config.model_copy(update=update)
    state: dict[str, Tensor] = {name: value for name, value in network.state.items() if name not in placeless}
    if isinstance(config, ModelConfig) and config.position == "learned" and "pos_embed" not in state:
        state["pos_embed"] = network.state["cls_token"].new_zeros(1, config.tokens(network.resolution), config.width)
    return replace(network, config=config, state=state)


def _of_positions(network: Network) -> Iterator[str]:
    for name in network.state:
        parts = name.split(".")
        if "pos_embed" in parts or "positions" in parts or "relative" in parts:
            yield name


def _of_pool(network: Network) -> Iterator[str]:
    return (name for name in network.state if name.startswith("attn_pool."))
