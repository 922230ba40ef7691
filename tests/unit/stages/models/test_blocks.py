"""Pooling by attention against timm's, the head's hidden layer, and images that skip a branch."""

import pytest
import torch
from torch.nn import functional

from stages.models.blocks import HiddenLayer, skip_images
from stages.models.vit import VisionTransformer
from tests.unit.stages.models.outputs import random_images, random_model, small_config
from tests.unit.stages.models.peers import import_timm, randomize


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_pooling_by_attention_is_timms(activation):
    timm = import_timm()
    config = small_config(width=64, mlp_dim=256, num_heads=4, patch_size=8, pool="attention", activation=activation)
    ours = VisionTransformer(config, 32, 11).eval()
    randomize(ours)
    theirs = timm.models.VisionTransformer(
        img_size=32, patch_size=8, num_classes=11, embed_dim=64, depth=2, num_heads=4, global_pool="map",
        class_token=False, act_layer=activation,
    ).eval()  # fmt: skip
    theirs.load_state_dict(ours.state_dict())
    images = random_images(3, 32)
    with torch.inference_mode():
        expected, found = theirs(images), ours(images)
    assert expected.std() > 0.5
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("head", "function"), [("mlp_tanh", torch.tanh), ("mlp_gelu", functional.gelu)])
def test_the_heads_hidden_layer(head, function):
    layer = HiddenLayer(small_config(head=head, activation="gelu"))
    x = torch.randn(3, 16)
    torch.testing.assert_close(layer(x), function(layer.fc(x)))


def test_images_that_skip_a_branch_are_made_up_for_by_the_others():
    torch.manual_seed(0)
    kept = skip_images(torch.ones(20_000, 1, 2), 0.3)
    assert kept.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert (kept[:, :, 0] == kept[:, :, 1]).all()
    assert kept.mean().item() == pytest.approx(1.0, abs=0.02)


def test_later_blocks_are_skipped_more_often_and_none_in_evaluation():
    model = random_model(0, depth=5, stochastic_depth=0.4)
    assert [block.skipped for block in model.blocks] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    images = random_images(4, 8)
    assert torch.equal(model(images), model(images))
    plain = random_model(0, depth=5)
    assert torch.equal(model(images), plain(images))
    model.train()
    assert not torch.equal(model(images), model(images))
