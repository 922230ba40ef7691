"""Small networks with random weights, and files of them as others have written them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages.models.build import build
from stages.models.config import model_config
from stages.models.formats.files import write_network
from stages.models.formats.google import rules_of
from stages.models.formats.known import FOLDERS, Format
from stages.models.formats.network import Network
from stages.models.formats.rules import outward
from stages.models.resnet_config import BitConfig
from tests.unit.stages.models.outputs import random_images, small_config
from tests.unit.stages.models.peers import randomize


def random_network(resolution: int = 12, num_classes: int = 7, **fields: Any) -> Network:
    """A small one by its fields, or one by its `variant` or `blocks`; every tensor random."""
    named = "variant" in fields or "blocks" in fields
    config = model_config(fields) if named else small_config(**fields)
    model = build(config, resolution, num_classes)
    randomize(model)
    if isinstance(config, BitConfig):
        # The mean over a map of many numbers is near to their mean: its logits would hardly differ.
        with torch.no_grad():
            model.head.weight.mul_(6)
    return Network(config=config, resolution=resolution, num_classes=num_classes, state=dict(model.state_dict()))


def written(network: Network, format: Format, folder: Path) -> Path:
    """The file or folder of a network in a format."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder if format in FOLDERS else folder / f"vit.{format}"
    write_network(network, format, path)
    return path


def assert_same(found: Network, expected: Network) -> None:
    """Equal networks, and equal bytes of their weights."""
    assert (found.config, found.resolution, found.num_classes) == (
        expected.config, expected.resolution, expected.num_classes,
    )  # fmt: skip
    assert found.state.keys() == expected.state.keys()
    assert [name for name, value in expected.state.items() if not torch.equal(found.state[name], value)] == []


def logits(network: Network) -> torch.Tensor:
    with torch.inference_mode():
        return network.module()(random_images(2, network.resolution)[:, : network.config.in_channels])


def google_arrays(network: Network) -> dict[str, np.ndarray]:
    """A network's arrays as the published files have them."""
    arrays = outward(rules_of(network.config), network.state, getattr(network.config, "num_heads", 1))
    return {name: value.numpy() for name, value in arrays.items()}


def save(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    np.savez(path, **arrays)
    return path
