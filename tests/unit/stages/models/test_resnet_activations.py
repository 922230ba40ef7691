"""Activations of hybrids and ResNets by formula against the tensors that autograd really keeps."""

import pytest
import torch
from torch import Tensor

from stages.models.activations import activations
from stages.models.build import build
from stages.models.config import model_config
from stages.models.flops import parameter_count

CLASSES, IMAGES = 10, 3
SMALL = {"width": 64, "depth": 2, "mlp_dim": 128, "num_heads": 2}


def kept_by_autograd(config, resolution: int, *, images: int, checkpointing: bool) -> int:
    """Bytes of all tensors that a forward pass saves, each memory counted once, the weights left out."""
    network = build(config, resolution, CLASSES)
    network.activation_checkpointing = checkpointing
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.randn(images, 3, resolution, resolution))
    return sum(tensor.untyped_storage().nbytes() for place, tensor in saved.items() if place not in weights)


def hybrid(blocks, patch_size, width_factor=1):
    return {**SMALL, "patch_size": patch_size, "stem": {"blocks": blocks, "width_factor": width_factor}}


@pytest.mark.parametrize(
    ("given", "resolution"),
    [
        (hybrid((), 4), 32),
        (hybrid((1, 2), 2, 2), 32),
        (hybrid((1, 1, 1, 1), 1), 64),
        ({"blocks": (1, 2, 1, 1)}, 64),
        ({"blocks": (1, 1, 1, 1), "width_factor": 2}, 45),
    ],
    ids=str,
)
@pytest.mark.parametrize("images", [1, 3])
def test_what_is_kept_is_what_autograd_keeps(given, resolution, images):
    config = model_config(given)
    found = activations(config, resolution, CLASSES, itemsize=4, fused=False)
    # Logits, and what the loss keeps of them, come after the network. A stem pads the image, and keeps the copy alone.
    outside = CLASSES * (4 + 4) + (0 if "blocks" in given else 4 * 3 * resolution**2)
    expected = found.kept(len(found.units), checkpointing=False, images=images) + images * (found.tail - outside)
    assert kept_by_autograd(config, resolution, images=images, checkpointing=False) == expected


def test_checkpointing_keeps_the_units_inputs():
    config = model_config({"blocks": (2, 2, 2, 2)})
    found = activations(config, 64, CLASSES, itemsize=4, fused=False)
    entries = sum(unit.entry for unit in found.units)
    assert found.kept(len(found.units), checkpointing=True) == found.inputs + entries
    assert found.backward(3, checkpointing=True, images=2) == (
        2 * found.inputs
        + 2 * sum(unit.entry for unit in found.units[:2])
        + 2 * (found.units[2].kept + found.units[2].working)
        + found.units[2].kernels
    )


@pytest.mark.parametrize("given", [hybrid((1, 2), 2), {"blocks": (1, 2, 1, 1)}], ids=str)
def test_the_units_parameters_are_those_of_the_network_but_its_ends(given):
    config = model_config(given)
    units = activations(config, 64, CLASSES, itemsize=4, fused=False).units
    network = build(config, 64, CLASSES)
    ends = [
        p for name, p in network.named_parameters() if name.split(".")[0] in ("norm", "head", "cls_token", "pos_embed")
    ]
    assert sum(unit.parameters for unit in units) == parameter_count(config, 64, CLASSES) - sum(p.numel() for p in ends)
