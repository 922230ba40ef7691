"""Probabilities computed again are those that the network attends with, and what they come to."""

import math

import numpy as np
import pytest
import torch

from stages.analyze.attention import attention_probabilities, probabilities
from stages.analyze.measures import attention_distance, attention_entropy, patch_distances, roll_out, seen
from stages.models import blocks
from tests.unit.stages.models.outputs import random_images, random_model

FORMS = {"written out": blocks.explicit_attention, "fused": blocks.fused_attention}
NETWORKS = [
    *({"position": kind} for kind in ("learned", "none", "learned_2d", "relative", "sincos_2d", "sincos_1d")),
    *({"position_at": where} for where in ("each_layer", "each_layer_shared")),
    *({"pool": pool} for pool in ("average", "attention")),
    {"pool": "average", "position": "relative"},
    {"dropout": 0.5, "stochastic_depth": 0.5},
    {"stem": {"blocks": (1,)}, "patch_size": 1},
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fields", NETWORKS, ids=str)
def test_probabilities_give_the_output_of_each_layer(monkeypatch, fields, form):
    monkeypatch.setattr(blocks, "attention", FORMS[form])
    model = random_model(0, **fields)
    given, made = [], []

    def listen(layer, inputs, output):
        given.append(inputs[0])
        made.append(output)

    handles = [block.attn.register_forward_hook(listen) for block in model.blocks]
    images = random_images(3, model.resolution)
    with torch.no_grad():
        features = model.features(images)
    for handle in handles:
        handle.remove()
    found = attention_probabilities(model, images)
    assert len(found) == len(given) == len(model.blocks)
    for block, own, x, output in zip(model.blocks, found, given, made, strict=True):
        batch, tokens, width = x.shape
        assert own.shape == (batch, model.config.num_heads, tokens, tokens)
        torch.testing.assert_close(own.sum(dim=-1), torch.ones(own.shape[:-1]))
        v = block.attn.qkv(x)[..., 2 * width :].reshape(batch, tokens, model.config.num_heads, -1).transpose(1, 2)
        mixed = (own @ v).transpose(1, 2).reshape(batch, tokens, width)
        torch.testing.assert_close(block.attn.proj(mixed), output, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(model.features(images), features)


def test_looking_leaves_the_network_as_it_was():
    model = random_model(0, dropout=0.5).train()
    images = random_images(2, model.resolution)
    first, again = (attention_probabilities(model, images) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert model.training
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_failure_takes_the_listeners_away():
    model = random_model(0)
    with pytest.raises(RuntimeError):
        attention_probabilities(model, random_images(1, model.resolution)[:, :2])
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_relative_positions_are_in_it():
    model = random_model(0, position="relative")
    layer, x = model.blocks[0].attn, torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own = probabilities(layer, x)
        layer.relative.keys.zero_()
        assert not torch.allclose(probabilities(layer, x), own)


# Uniform attention: reference figures for 14 × 14 patches of 16, 16 × 16 of 14, 7 × 7 of 32 and 24 × 24 of 16 pixels.
@pytest.mark.parametrize(
    ("side", "stride", "expected"), [(14, 16, 116.49), (16, 14, 116.57), (7, 32, 115.50), (24, 16, 200.05)]
)
@pytest.mark.parametrize("prefix", [0, 1])
def test_uniform_attention_goes_as_far_as_patches_are_apart(side, stride, expected, prefix):
    tokens = side**2 + prefix
    uniform = torch.full((1, 2, tokens, tokens), 1 / tokens)
    found = attention_distance(uniform, patch_distances((side, side), stride))
    assert found.shape == (1, 2)
    assert found.tolist()[0] == pytest.approx([expected] * 2, abs=0.005)


def test_attention_to_oneself_goes_nowhere_and_to_the_next_patch_one_patch_far():
    distances = patch_distances((14, 14), 16)
    own = torch.eye(196).expand(1, 1, -1, -1)
    assert attention_distance(own, distances).item() == 0
    # To the right, and from the last column to the left.
    places = torch.arange(196).reshape(14, 14)
    for axis in (0, 1):
        beside = places.roll(-1, dims=axis)
        beside.select(axis, -1).copy_(places.select(axis, -2))
        shifted = torch.eye(196)[beside.ravel()].expand(1, 1, -1, -1)
        assert attention_distance(shifted, distances).item() == pytest.approx(16, abs=1e-9)


def test_the_class_token_takes_part_in_no_distance():
    generator = torch.Generator().manual_seed(0)
    among = torch.rand(2, 3, 9, 9, generator=generator, dtype=torch.float64).softmax(dim=-1)
    distances = patch_distances((3, 3), 4)
    whole = torch.zeros(2, 3, 10, 10, dtype=torch.float64)
    whole[..., 0, 0] = 1
    whole[..., 1:, 0], whole[..., 1:, 1:] = 0.75, among / 4
    expected = attention_distance(among, distances)
    torch.testing.assert_close(attention_distance(whole, distances), expected)
    # Otherwise what goes to it is lost.
    torch.testing.assert_close(attention_distance(whole, distances, renormalise=False), expected / 4)
    alone = torch.zeros(1, 1, 10, 10)
    alone[..., 0] = 1
    assert attention_distance(alone, distances).item() == 0


def test_entropy_lies_between_one_token_and_all_alike():
    assert attention_entropy(torch.eye(10)[None, None]).item() == 0
    assert attention_entropy(torch.full((1, 1, 10, 10), 0.1)).item() == pytest.approx(math.log(10), abs=1e-6)
    halves = torch.zeros(1, 1, 4, 4)
    halves[..., :2] = 0.5
    assert attention_entropy(halves).item() == pytest.approx(math.log(2))


def test_rollout_is_the_product_of_the_layers_with_their_residual_connections():
    generator = torch.Generator().manual_seed(0)
    layers = [torch.rand(2, 3, 10, 10, generator=generator).softmax(dim=-1) for _ in range(3)]
    joint = None
    for own in layers:
        joint = roll_out(joint, own)
    expected = np.eye(10)
    for own in layers:
        step = own[0].numpy().astype(np.float64).mean(axis=0) + np.eye(10)
        expected = step / step.sum(axis=1, keepdims=True) @ expected
    np.testing.assert_allclose(joint[0].numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(seen(joint, (3, 3), 1)[0].numpy(), expected[0, 1:].reshape(3, 3), rtol=1e-5)
    np.testing.assert_allclose(seen(joint, (2, 5), 0)[0].numpy(), expected.mean(axis=0).reshape(2, 5), rtol=1e-5)
