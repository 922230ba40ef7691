"""Which parts of a network a format has a place for, and a network without the others."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from cluster.errors import UserError
from stages.models.formats.arrays import shown
from stages.models.formats.known import Format
from stages.models.formats.network import Network

HEADS = {"npz": ("linear", "mlp_tanh"), "timm": ("linear",), "hf": ("linear",)}
POSITIONS = {"npz": ("learned", "none"), "timm": ("learned", "none"), "hf": ("learned",)}
POOLS = {"npz": ("token", "average", "attention"), "timm": ("token", "average", "attention"), "hf": ("token",)}
EPSILON = {"timm": 1e-6}
"""The one that a format has, where its settings have no place for it."""


def fitted(network: Network, format: Format, *, drop: bool) -> tuple[Network, tuple[str, ...]]:
    """The network as a format can have it, and what was left out for that.

    Raises UserError naming what there is no place for, unless it is to be dropped; and where nothing of the network
    would be left without it.
    """
    config = network.config
    if format == "safetensors":
        return network, ()
    if config.stem is not None:
        raise UserError(f"{format}: hybrids are exported as safetensors alone: name a file that ends in .safetensors")
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
    update: dict[str, str] = {}
    placeless: list[str] = []
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


def _without(network: Network, update: dict[str, str], placeless: list[str]) -> Network:
    config = network.config.model_copy(update=update)
    state: dict[str, Tensor] = {name: value for name, value in network.state.items() if name not in placeless}
    if config.position == "learned" and "pos_embed" not in state:
        state["pos_embed"] = network.state["cls_token"].new_zeros(1, config.tokens(network.resolution), config.width)
    return Network(
        config=config, resolution=network.resolution, num_classes=network.num_classes, state=state,
        classes=network.classes, about=network.about,
    )  # fmt: skip


def _of_positions(network: Network) -> Iterator[str]:
    for name in network.state:
        parts = name.split(".")
        if "pos_embed" in parts or "positions" in parts or "relative" in parts:
            yield name


def _of_pool(network: Network) -> Iterator[str]:
    return (name for name in network.state if name.startswith("attn_pool."))
