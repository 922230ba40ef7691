"""BiT's ResNets against timm's."""

import pytest
import torch

from stages.models.bit import BitResNet
from stages.models.build import build
from stages.models.config import model_config
from tests.unit.stages.models.outputs import random_images
from tests.unit.stages.models.peers import import_timm, randomize


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


def test_features_are_what_the_last_layer_is_given():
    model = build(model_config({"blocks": (1, 1, 1, 1)}), 40, 7).eval()
    assert isinstance(model, BitResNet)
    randomize(model)
    images = random_images(2, 40)
    assert model.features(images).shape == (2, 2048)
    assert torch.equal(model.head(model.features(images)), model(images))
