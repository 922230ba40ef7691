"""Activations by formula against the tensors that autograd really keeps."""

import pytest
import torch
from torch import Tensor, nn

from stages.models import blocks
from stages.models.activations import activations
from stages.models.config import ModelConfig
from stages.models.masked import MaskedVisionTransformer
from stages.models.masked_config import MaskedConfig
from stages.models.vit import VisionTransformer

RESOLUTION, CLASSES, IMAGES = 32, 10, 3


def config(**fields) -> ModelConfig:
    return ModelConfig.model_validate(
        {"width": 64, "depth": 2, "mlp_dim": 256, "num_heads": 4, "patch_size": 8, **fields}
    )


def kept_by_autograd(model: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of all tensors that a forward pass saves, each memory counted once, the weights left out."""
    network = VisionTransformer(model, RESOLUTION, CLASSES).to(dtype)
    return kept(network, torch.randn(IMAGES, 3, RESOLUTION, RESOLUTION, dtype=dtype))


def kept(network: nn.Module, *inputs: Tensor) -> int:
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(*inputs)
    return sum(tensor.untyped_storage().nbytes() for place, tensor in saved.items() if place not in weights)


@pytest.mark.parametrize("fields", [{}, {"patch_size": 4}, {"num_heads": 16}, {"depth": 5}, {"dropout": 0.1}])
def test_what_is_kept_is_what_autograd_keeps(fields):
    model = config(**fields)
    found = activations(model, RESOLUTION, CLASSES, itemsize=4, fused=False)
    # Logits, and what the loss keeps of them, come after the network; an output head keeps nothing of its own.
    outside = CLASSES * (4 + 4)
    expected = found.kept(model.depth, checkpointing=False) + found.tail - outside
    assert IMAGES * expected == kept_by_autograd(model, torch.float32)


@pytest.mark.parametrize("target", ["mean_colour", "downsized", "pixels"])
def test_what_predicting_masked_patches_keeps(target):
    model, masked = config(), MaskedConfig(target=target)
    corrupted = masked.corrupted(16)
    found = activations(model, RESOLUTION, 0, itemsize=4, fused=False, masked=masked)
    # The predictions, and what the loss keeps of them.
    outside = corrupted * masked.outputs(model) * (4 + 4)
    expected = found.kept(model.depth, checkpointing=False) + found.tail - outside
    places, sources = (torch.zeros(IMAGES, corrupted, dtype=torch.int64) for _ in range(2))
    images = torch.randn(IMAGES, 3, RESOLUTION, RESOLUTION)
    assert IMAGES * expected == kept(MaskedVisionTransformer(model, RESOLUTION, masked), images, places, sources)


def test_fused_attention_keeps_no_square_of_the_tokens(monkeypatch):
    monkeypatch.setattr(blocks, "explicit_attention", blocks.fused_attention)
    model = config(patch_size=4)
    found = activations(model, RESOLUTION, CLASSES, itemsize=4, fused=True)
    expected = found.kept(model.depth, checkpointing=False) + found.tail - CLASSES * (4 + 4)
    assert kept_by_autograd(model, torch.float32) == IMAGES * expected


def test_half_precision_halves_all_but_the_norms_figures():
    of = {size: activations(config(), RESOLUTION, CLASSES, itemsize=size, fused=True) for size in (2, 4)}
    whole, narrow = of[4].units[0], of[2].units[0]
    assert whole.entry == 2 * narrow.entry
    assert whole.kept / 2 < narrow.kept < 0.53 * whole.kept


def test_checkpointing_keeps_the_blocks_inputs_and_one_block():
    found = activations(config(depth=12), RESOLUTION, CLASSES, itemsize=4, fused=False)
    block = found.units[0]
    assert found.backward(12, checkpointing=True) == found.inputs + 11 * block.entry + block.kept + block.working
    assert found.backward(12, checkpointing=True) < found.backward(12, checkpointing=False) / 4
