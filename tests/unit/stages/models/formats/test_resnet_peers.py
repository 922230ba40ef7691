"""Exported hybrids and BiT as timm and transformers themselves load them. No head is zero: it would hide all else."""

import pytest
import torch

from stages.models.build import build
from stages.models.config import model_config
from stages.models.formats import parity
from stages.models.formats.network import Network
from stages.models.formats.timm_resnets import BITS, HYBRIDS, as_computed
from tests.unit.stages.models.formats.networks import logits, random_network, written
from tests.unit.stages.models.outputs import random_images
from tests.unit.stages.models.peers import import_timm

ROOT_ALONE = {"variant": "R+Ti/16", "depth": 2, "resolution": 64}
R26 = {"variant": "R26+S/32", "depth": 2, "resolution": 64}
R50 = {"variant": "R50x1", "resolution": 64}
OWN = {"width": 48, "depth": 1, "num_heads": 3, "mlp_dim": 100, "resolution": 32}
"""A hybrid of sizes of its own."""


@pytest.fixture(scope="module", autouse=True)
def libraries():
    return import_timm()


def network_of(fields, **changed) -> Network:
    network = random_network(num_classes=11, **fields)
    return Network(**{**vars(network), **changed})


def assert_equal(network: Network, path, format, by):
    """Equal but for the library's epsilons, whose effect is told: it is what it is, and small."""
    found = parity.check(network, path, format)
    assert found.compared_with.startswith(f"our own reader and {by}"), found.note
    assert found.greatest_difference <= 1e-4 * max(1.0, found.greatest_logit)
    assert found.equal
    assert logits(network).std() >= 0.5
    assert found.epsilons == "1e-08 added to the variance of kernels and 1e-05 in GroupNorm"
    assert 0 < found.epsilon_difference < 0.02 * max(1.0, found.greatest_logit)


@pytest.mark.parametrize("fields", [ROOT_ALONE, R26, R50], ids=["R+Ti", "R26+S", "R50x1"])
@pytest.mark.parametrize(("format", "by"), [("timm", "timm"), ("npz", "timm"), ("hf", "transformers")])
def test_logits_of_the_library_are_ours(tmp_path, format, by, fields):
    network = network_of(fields)
    assert_equal(network, written(network, format, tmp_path), format, by)


@pytest.mark.parametrize(
    ("format", "fields"),
    [
        ("hf", {**OWN, "stem": {"blocks": (1, 2), "width_factor": 2}, "patch_size": 2}),
        ("hf", {"blocks": (1, 2, 1, 1), "width_factor": 2, "resolution": 51, "in_channels": 1}),
        ("timm", {**OWN, "stem": {}, "patch_size": 2, "pool": "average", "in_channels": 1}),
    ],
)
def test_sizes_and_settings_of_ones_own_are_understood(tmp_path, format, fields):
    network = network_of(fields)
    by = "transformers" if format == "hf" else "timm"
    assert_equal(network, written(network, format, tmp_path), format, by)


def test_with_the_librarys_epsilons_nothing_is_left_to_tell(tmp_path):
    network = random_network(num_classes=11, **ROOT_ALONE)
    network = Network(**{**vars(network), "config": as_computed(network.config)})
    found = parity.check(network, written(network, "timm", tmp_path), "timm")
    assert (found.epsilons, found.epsilon_difference) == ("", None)
    assert found.equal


def test_with_an_epsilon_for_each_kernel_timm_reproduces_googles(tmp_path):
    """Added to the variance, what the paper's code adds to the deviation: (σ + 1e-5)² - σ², for the mean σ of each."""
    import timm

    network = network_of({"variant": "R26+S/32", "depth": 2, "resolution": 64, "activation": "gelu"})
    peer = timm.create_model(f"local-dir:{written(network, 'timm', tmp_path)}", pretrained=True).eval()
    for module in peer.modules():
        if type(module).__name__ == "StdConv2dSame":
            deviation = float(module.weight.detach().std(dim=(1, 2, 3), correction=0).mean())
            module.eps = (deviation + 1e-5) ** 2 - deviation**2
        elif isinstance(module, torch.nn.GroupNorm):
            module.eps = 1e-6
    images = random_images(2, 64)
    with torch.inference_mode():
        expected, found = network.module()(images), peer(images)
    assert expected.std() >= 0.5
    assert (found - expected).abs().max() <= 1e-4 * max(1.0, float(expected.abs().max()))


def test_a_file_of_another_network_does_not_pass(tmp_path):
    network = network_of(ROOT_ALONE)
    name = "patch_embed.backbone.norm.bias"
    other = Network(**{**vars(network), "state": {**network.state, name: network.state[name].flip(0)}})
    assert not parity.check(network, written(other, "timm", tmp_path), "timm").equal


def test_a_last_layer_of_zeros_hides_nothing(tmp_path):
    network = network_of(R50)
    network.state["head.weight"].zero_()
    for format in ("timm", "hf"):
        found = parity.check(network, written(network, format, tmp_path / format), format)
        assert found.equal
        assert found.greatest_logit > 0.5, found


def test_timm_has_the_networks_that_are_named(libraries):
    """By the names of its arrays and their shapes, without their numbers."""
    expected = {
        f"{name}_224": (variant, blocks) for blocks, sizes in HYBRIDS.items() for variant, name in sizes.items()
    }
    for name, (variant, blocks) in expected.items():
        patch = 8 if not blocks else 1
        config = model_config({"variant": variant, "stem": {"blocks": blocks}, "patch_size": patch})
        assert {key: value.shape for key, value in on_meta(libraries, name).items()} == {
            key: value.shape for key, value in build_on_meta(config).items()
        }
    for own, name in BITS.items():
        theirs = {key.replace("head.fc.", "head."): value.numel() for key, value in on_meta(libraries, name).items()}
        assert theirs == {key: value.numel() for key, value in build_on_meta(model_config(own)).items()}


def on_meta(timm, name):
    with torch.device("meta"):
        return timm.create_model(name, num_classes=1000).state_dict()


def build_on_meta(config):
    with torch.device("meta"):
        return build(config, 224, 1000).state_dict()
