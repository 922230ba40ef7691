"""Hybrids against a statement of their reference in numpy, and against timm."""

import math

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view

from stages.models.build import build
from stages.models.config import ModelConfig, model_config
from stages.models.resnet import DeviationConv
from tests.unit.stages.models.outputs import random_images, small_config
from tests.unit.stages.models.peers import import_timm, randomize
from tests.unit.stages.models.test_vit import paper_logits, random_weights, timm_state

RANDOM = np.random.default_rng(3)


def windows(x, size, stride, value):
    """Windows [B, h, w, C, size, size] of a map [B, H, W, C], padded as TensorFlow's SAME."""
    pads = []
    for side in x.shape[1:3]:
        total = max(0, (math.ceil(side / stride) - 1) * stride + size - side)
        pads.append((total // 2, total - total // 2))
    padded = np.pad(x, [(0, 0), *pads, (0, 0)], constant_values=value)
    return sliding_window_view(padded, (size, size), axis=(1, 2))[:, ::stride, ::stride]


def std_conv(x, kernel, stride=1, epsilon=1e-5):
    """`StdConv` of `vit_jax/models_resnet.py`; kernels are [H, W, inputs, outputs]."""
    kernel = kernel - kernel.mean(axis=(0, 1, 2))
    kernel = kernel / (kernel.std(axis=(0, 1, 2)) + epsilon)
    return np.einsum("bhwcij,ijcd->bhwd", windows(x, kernel.shape[0], stride, 0.0), kernel, optimize=True)


def group_norm(x, scale_and_bias, epsilon=1e-6):
    grouped = x.reshape(x.shape[0], -1, 32, x.shape[-1] // 32)
    mean, variance = (f(grouped, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    return ((grouped - mean) / np.sqrt(variance + epsilon)).reshape(x.shape) * scale_and_bias[0] + scale_and_bias[1]


def relu(x):
    return np.maximum(x, 0)


def stem_map(weights, images, blocks):
    """The last map [B, C, h, w] of the stem, from images [B, 3, R, R]."""
    x = relu(group_norm(std_conv(images.transpose(0, 2, 3, 1), weights["conv_root"], 2), weights["gn_root"]))
    x = windows(x, 3, 2, -np.inf).max(axis=(-1, -2))
    for stage, count in enumerate(blocks):
        for unit in range(count):
            own = {key[2:]: value for key, value in weights.items() if key[:2] == (stage, unit)}
            own = {key[0]: value for key, value in own.items()}
            x = residual_unit(x, own, 2 if stage and not unit else 1)
    return x.transpose(0, 3, 1, 2)


def residual_unit(x, own, stride):
    residual = x
    if "conv_proj" in own:
        residual = group_norm(std_conv(x, own["conv_proj"], stride), own["gn_proj"])
    y = relu(group_norm(std_conv(x, own["conv1"]), own["gn1"]))
    y = relu(group_norm(std_conv(y, own["conv2"], stride), own["gn2"]))
    return relu(residual + group_norm(std_conv(y, own["conv3"]), own["gn3"]))


def random_stem(blocks, width_factor):
    """Random arrays under the reference's names, and those of units by stage, unit and name."""

    def kernel(size, inputs, outputs):
        return 0.1 + RANDOM.normal(size=(size, size, inputs, outputs))

    def norm(channels):
        return 1 + 0.3 * RANDOM.normal(size=channels), 0.3 * RANDOM.normal(size=channels)

    inputs = 64 * width_factor
    weights = {"conv_root": kernel(7, 3, inputs), "gn_root": norm(inputs)}
    for stage, count in enumerate(blocks):
        width = 64 * width_factor * 2**stage
        for unit in range(count):
            sizes = {"1": (1, inputs, width), "2": (3, width, width), "3": (1, width, 4 * width)}
            if not unit:
                sizes["_proj"] = (1, inputs, 4 * width)
            for name, size in sizes.items():
                weights[stage, unit, f"conv{name}"] = kernel(*size)
                weights[stage, unit, f"gn{name}"] = norm(size[2])
            inputs = 4 * width
    return weights


def stem_state(weights, blocks):
    """The same weights under timm's names."""
    root = "patch_embed.backbone.stem" if blocks else "patch_embed.backbone"
    names = {"conv_proj": "downsample.conv", "gn_proj": "downsample.norm"}
    names |= {f"gn{i}": f"norm{i}" for i in (1, 2, 3)}
    state = {}
    for key, value in weights.items():
        if isinstance(key, str):
            name = f"{root}.{'conv' if key == 'conv_root' else 'norm'}"
        else:
            name = f"patch_embed.backbone.stages.{key[0]}.blocks.{key[1]}.{names.get(key[2], key[2])}"
        if isinstance(value, tuple):
            state[f"{name}.weight"], state[f"{name}.bias"] = (torch.tensor(part) for part in value)
        else:
            state[f"{name}.weight"] = torch.tensor(np.ascontiguousarray(value.transpose(3, 2, 0, 1)))
    return state


@pytest.mark.parametrize(
    ("blocks", "patch_size", "resolution", "width_factor"),
    [((), 4, 32, 1), ((1,), 2, 24, 2), ((1, 2), 2, 32, 1), ((1, 1, 1, 1), 1, 64, 1)],
    ids=str,
)
def test_hybrids_are_their_reference(blocks, patch_size, resolution, width_factor):
    stem = {"blocks": blocks, "width_factor": width_factor}
    config = small_config(patch_size=patch_size, stem=stem)
    body = config.model_copy(update={"stem": None, "in_channels": config.stem.channels})
    own, weights = random_stem(blocks, width_factor), random_weights(body, resolution // config.stem.stride, 11, seed=2)
    images = RANDOM.uniform(-1, 1, (2, 3, resolution, resolution))
    model = build(config, resolution, 11).double().eval()
    model.load_state_dict({**timm_state(weights, body), **stem_state(own, blocks)})
    with torch.inference_mode():
        found = model(torch.from_numpy(images)).numpy()
    expected = paper_logits(weights, stem_map(own, images, blocks), body)
    assert expected.std() >= 0.5
    assert np.abs(found - expected).max() <= 1e-8


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("sides", [(8, 8), (9, 9), (8, 9), (7, 10)])
def test_same_padding_is_tensorflows(size, stride, sides):
    convolution = DeviationConv(3, 4, size, stride=stride, epsilon=1e-3, same=True).double()
    x = torch.from_numpy(RANDOM.normal(size=(2, 3, *sides)))
    kernel = convolution.weight.detach().numpy().transpose(2, 3, 1, 0)
    expected = std_conv(x.numpy().transpose(0, 2, 3, 1), kernel, stride, epsilon=1e-3).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(convolution(x).detach().numpy(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "peer"),
    [
        ("R+Ti/16", "vit_tiny_r_s16_p8_224"),
        ("R26+S/32", "vit_small_r26_s32_224"),
        ("R50+B/16", "vit_base_r50_s16_224"),
    ],
)
def test_logits_of_hybrids_are_timms(name, peer):
    timm = import_timm()
    # timm adds its epsilon to the variance, the reference to the deviation: next to none makes the two one.
    config = ModelConfig.model_validate({"variant": name})
    stem = config.stem.model_copy(update={"epsilon": 1e-12, "group_norm_epsilon": 1e-5})
    ours = build(config.model_copy(update={"stem": stem}), 64, 11).eval()
    randomize(ours)
    theirs = timm.create_model(peer, img_size=64, num_classes=11, act_layer="gelu_tanh").eval()
    theirs.load_state_dict(ours.state_dict())
    for module in theirs.modules():
        if type(module).__name__ == "StdConv2dSame":
            module.eps = 1e-12
    images = random_images(2, 64)
    with torch.inference_mode():
        expected, found = theirs(images), ours(images)
    assert expected.std() > 0.5
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    "fields", [{"variant": "R+Ti/16", "depth": 1}, {"variant": "R26+S/32", "depth": 1}, {"blocks": (1, 1, 1, 1)}]
)
def test_computing_again_gives_the_same_gradients(fields):
    model = build(model_config(fields), 32, 5).train()
    randomize(model)
    found = []
    for again in (False, True):
        model.activation_checkpointing = again
        model.zero_grad()
        model(random_images(2, 32)).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
