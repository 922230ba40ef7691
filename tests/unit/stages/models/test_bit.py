"""BiT's ResNets against timm's."""

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view

from stages.models.bit import BitResNet
from stages.models.build import build
from stages.models.config import model_config
from tests.unit.stages.models.outputs import random_images
from tests.unit.stages.models.peers import import_timm, randomize
from tests.unit.stages.models.test_resnet import group_norm, relu


def under_timms_names(state):
    """The head is a convolution there."""
    head = state["head.weight"][:, :, None, None]
    body = {name: value for name, value in state.items() if not name.startswith("head.")}
    return {**body, "head.fc.weight": head, "head.fc.bias": state["head.bias"]}


@pytest.mark.parametrize(
    ("blocks", "width_factor", "resolution"),
    [((3, 4, 6, 3), 1, 96), ((2, 1, 1, 2), 2, 51)],
    ids=["R50x1", "small"],
)
def test_logits_are_timms(blocks, width_factor, resolution):
    timm = import_timm()
    # With timm's epsilon; an odd side shows where the pooling's zeros go.
    ours = build(model_config({"blocks": blocks, "width_factor": width_factor, "epsilon": 1e-8}), resolution, 11).eval()
    randomize(ours)
    with torch.no_grad():
        ours.head.weight.mul_(3)
    make = timm.models.resnetv2._create_resnetv2_bit
    theirs = make("resnetv2_50x1_bit", layers=blocks, width_factor=width_factor, num_classes=11).eval()
    theirs.load_state_dict(under_timms_names(ours.state_dict()))
    images = random_images(3, resolution)
    with torch.inference_mode():
        expected, found = theirs(images), ours(images)
    assert expected.std() > 0.5
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def standardised(x, kernel, stride=1):
    """`StdConv` of big_vision's `models/bit_paper.py`, (size - 1) / 2 zeros around; kernels [H, W, inputs, outputs]."""
    kernel = kernel - kernel.mean(axis=(0, 1, 2))
    kernel = kernel / np.sqrt(kernel.var(axis=(0, 1, 2)) + 1e-10)
    return np.einsum("bhwcij,ijcd->bhwd", around(x, kernel.shape[0], stride), kernel, optimize=True)


def around(x, size, stride):
    """Windows [B, h, w, C, size, size] of a map [B, H, W, C] with zeros around it."""
    side = (size - 1) // 2
    padded = np.pad(x, [(0, 0), (side, side), (side, side), (0, 0)])
    return sliding_window_view(padded, (size, size), axis=(1, 2))[:, ::stride, ::stride]


def bit_logits(state, images, blocks):
    """The network in numpy, from its weights under timm's names and images [B, 3, R, R]."""
    weights = {name: value.numpy() for name, value in state.items()}

    def conv(x, name, stride=1):
        return standardised(x, weights[f"{name}.weight"].transpose(2, 3, 1, 0), stride)

    def active(x, name):
        return relu(group_norm(x, (weights[f"{name}.weight"], weights[f"{name}.bias"]), epsilon=1e-5))

    x = around(conv(images.transpose(0, 2, 3, 1), "stem.conv", 2), 3, 2).max(axis=(-1, -2))
    for stage, count in enumerate(blocks):
        for number in range(count):
            unit, stride = f"stages.{stage}.blocks.{number}", 2 if stage and not number else 1
            y = active(x, f"{unit}.norm1")
            shortcut = conv(y, f"{unit}.downsample.conv", stride) if not number else x
            y = conv(y, f"{unit}.conv1")
            y = conv(active(y, f"{unit}.norm2"), f"{unit}.conv2", stride)
            x = conv(active(y, f"{unit}.norm3"), f"{unit}.conv3") + shortcut
    features = active(x, "norm").mean(axis=(1, 2))
    return features @ weights["head.weight"].T + weights["head.bias"]


@pytest.mark.parametrize("resolution", [64, 51])
def test_it_is_its_reference(resolution):
    blocks = (2, 1, 1, 1)
    model = build(model_config({"blocks": blocks}), resolution, 11).eval()
    randomize(model)
    model.double()
    images = np.random.default_rng(4).uniform(-1, 1, (2, 3, resolution, resolution))
    with torch.inference_mode():
        found = model(torch.from_numpy(images)).numpy()
    expected = bit_logits(model.state_dict(), images, blocks)
    assert expected.std() >= 0.5
    assert np.abs(found - expected).max() <= 1e-8


def test_the_epsilon_of_its_weights_is_big_visions():
    convolution = build(model_config({"blocks": (1, 1, 1, 1)}), 32, 3).stem.conv.double()
    with torch.no_grad():
        convolution.weight.normal_(0.0, 1e-5, generator=torch.Generator().manual_seed(0))
    # Of weights so small the epsilon is half of what is divided by.
    x = np.random.default_rng(5).normal(size=(1, 3, 16, 16))
    expected = standardised(x.transpose(0, 2, 3, 1), convolution.weight.detach().numpy().transpose(2, 3, 1, 0), 2)
    found = convolution(torch.from_numpy(x)).detach().numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_features_are_what_the_last_layer_is_given():
    model = build(model_config({"blocks": (1, 1, 1, 1)}), 40, 7).eval()
    assert isinstance(model, BitResNet)
    randomize(model)
    images = random_images(2, 40)
    assert model.features(images).shape == (2, 2048)
    assert torch.equal(model.head(model.features(images)), model(images))
