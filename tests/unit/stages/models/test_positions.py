"""Position embeddings of all kinds against loops in numpy, and what they do to the network."""

import math

import numpy as np
import pytest
import torch

from stages.models.blocks import explicit_attention, fused_attention
from stages.models.flops import parameter_count
from stages.models.positions import LearnedPositions2d, RelativePositions, sincos_1d, sincos_2d
from stages.models.resampling import is_resampled, resample
from tests.unit.stages.models.outputs import random_images, random_model

KINDS = ["learned", "none", "learned_2d", "relative", "sincos_2d", "sincos_1d"]
PLACES = [(kind, at) for kind in KINDS for at in ("stem", "each_layer", "each_layer_shared")]
POSSIBLE = [(kind, at) for kind, at in PLACES if at == "stem" or kind not in ("none", "relative")]


@pytest.mark.parametrize("prefix_tokens", [0, 1])
def test_2d_tables_are_joined_for_each_patch(prefix_tokens):
    module, seeded = LearnedPositions2d((2, 3), prefix_tokens, 8), torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, generator=seeded)
    x, y = module.x.detach()[0].numpy(), module.y.detach()[0].numpy()
    expected = [np.concatenate([x[column], y[row]]) for row in range(2) for column in range(3)]
    found = module().detach()[0].numpy()
    np.testing.assert_array_equal(found[prefix_tokens:], expected)
    if prefix_tokens:
        assert module.prefix is not None
        np.testing.assert_array_equal(found[:1], module.prefix.detach()[0].numpy())


def test_relative_logits_are_the_query_times_the_offsets_key():
    tokens, heads, size = 5, 2, 4
    seeded = torch.Generator().manual_seed(0)
    module = RelativePositions(tokens, heads, heads * size).double()
    torch.nn.init.normal_(module.keys, generator=seeded)
    q = torch.randn(3, heads, tokens, size, dtype=torch.float64, generator=seeded)
    found = module(q).detach().numpy()
    keys = module.keys.detach().numpy()
    for head in range(heads):
        for i in range(tokens):
            for j in range(tokens):
                expected = q[:, head, i].numpy() @ keys[head, i - j + tokens - 1]
                np.testing.assert_allclose(found[:, head, i, j], expected, rtol=1e-12, atol=1e-14)


def test_both_forms_of_attention_take_the_bias_alike():
    seeded = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 6, 8, dtype=torch.float64, generator=seeded)
    bias = torch.randn(2, 4, 6, 6, dtype=torch.float64, generator=seeded)
    torch.testing.assert_close(fused_attention(q, k, v, bias), explicit_attention(q, k, v, bias))
    assert not torch.allclose(explicit_attention(q, k, v, bias), explicit_attention(q, k, v))


def test_2d_waves():
    rows, columns, width = 2, 3, 16
    found = sincos_2d((rows, columns), 1, width)[0].double().numpy()
    np.testing.assert_array_equal(found[0], np.zeros(width))
    for row in range(rows):
        for column in range(columns):
            waves = [10_000 ** -(i / (width // 4 - 1)) for i in range(width // 4)]
            parts = [[f(place * wave) for wave in waves] for place in (column, row) for f in (math.sin, math.cos)]
            np.testing.assert_allclose(found[1 + row * columns + column], np.concatenate(parts), atol=1e-6)


def test_1d_waves():
    width = 8
    found = sincos_1d((2, 2), 1, width)[0].double().numpy()
    for place in range(5):
        waves = [place * 10_000 ** -(i / (width // 2)) for i in range(width // 2)]
        expected = [math.sin(wave) for wave in waves] + [math.cos(wave) for wave in waves]
        np.testing.assert_allclose(found[place], expected, atol=1e-6)


@pytest.mark.parametrize(("kind", "at"), POSSIBLE)
def test_a_network_without_positions_alone_does_not_see_where_its_patches_are(kind, at):
    model = random_model(1, resolution=8, pool="average", position=kind, position_at=at).double()
    images = random_images(2, 8).double()
    swapped = torch.cat([images[..., 4:], images[..., :4]], dim=-1)
    same = torch.allclose(model(images), model(swapped), atol=1e-9)
    assert same == (kind == "none")


@pytest.mark.parametrize("pool", ["token", "average", "attention"])
@pytest.mark.parametrize(("kind", "at"), POSSIBLE)
def test_parameters_are_counted(kind, at, pool):
    model = random_model(0, resolution=12, position=kind, position_at=at, pool=pool, head="mlp_gelu")
    assert parameter_count(model.config, 12, 7) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["learned", "learned_2d", "sincos_2d", "sincos_1d"])
def test_shared_embeddings_are_those_of_every_block(kind):
    shared = random_model(2, position=kind, position_at="each_layer_shared")
    each = random_model(3, position=kind, position_at="each_layer")
    state = {name: value for name, value in shared.state_dict().items() if not name.startswith("pos")}
    for block in range(shared.config.depth):
        own = {name: value for name, value in shared.state_dict().items() if name.startswith("pos")}
        state |= {f"blocks.{block}.{name}": value for name, value in own.items()}
    each.load_state_dict(state)
    images = random_images(2, 8)
    torch.testing.assert_close(each(images), shared(images), rtol=0, atol=0)
    stem = random_model(2, position=kind)
    stem.load_state_dict(shared.state_dict())
    assert not torch.allclose(stem(images), shared(images), atol=1e-3)


@pytest.mark.parametrize("kind", ["learned_2d", "relative"])
def test_tables_along_one_axis_are_stretched_between_their_ends(kind):
    model = random_model(4, resolution=8, position=kind)
    found = {name: value for name, value in model.state_dict().items() if is_resampled(name)}
    assert len(found) == (2 if kind == "learned_2d" else model.config.depth)
    for name, value in found.items():
        after = resample(name, value, (2, 2), (3, 5), prefix_tokens=1, mode="scipy_bilinear")
        places = {"positions.x": 5, "positions.y": 3}.get(name, 2 * 16 - 1)
        assert after.shape == (value.shape[0], places, value.shape[2])
        torch.testing.assert_close(after[:, [0, -1]], value[:, [0, -1]])
        old, new = np.linspace(0, 1, value.shape[1]), np.linspace(0, 1, places)
        for part, expected in zip(after, value, strict=True):
            for column in range(value.shape[2]):
                line = np.interp(new, old, expected[:, column].numpy())
                np.testing.assert_allclose(part[:, column].numpy(), line, atol=1e-6)
