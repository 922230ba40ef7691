"""Exported files as timm and transformers themselves load them. No head is zero: it would hide all before it."""

import pytest
import torch

from stages.models.formats import parity
from stages.models.formats.network import Network
from stages.models.formats.timm import mlp_ratio
from tests.unit.stages.models.formats.networks import random_network, written
from tests.unit.stages.models.outputs import random_images
from tests.unit.stages.models.peers import import_timm


@pytest.fixture(scope="module", autouse=True)
def libraries():
    import_timm()


def assert_equal(network: Network, path, format, by):
    found = parity.check(network, path, format)
    assert found.compared_with.startswith(f"our own reader and {by}"), found.note
    assert found.equal
    assert found.greatest_difference <= 1e-5 * max(1.0, found.greatest_logit)
    with torch.inference_mode():
        assert network.module()(random_images(2, network.resolution)).std() > 0.5


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
@pytest.mark.parametrize("variant", ["Ti/16", "S/16", "B/16"])
def test_transformers_gives_our_logits(tmp_path, variant, activation):
    network = random_network(variant=variant, activation=activation, resolution=48, num_classes=11)
    assert_equal(network, written(network, "hf", tmp_path), "hf", "transformers")


@pytest.mark.parametrize("format", ["timm", "npz"])
@pytest.mark.parametrize(("variant", "activation"), [("Ti/16", "gelu"), ("S/16", "gelu_tanh")])
def test_timm_gives_our_logits(tmp_path, variant, activation, format):
    network = random_network(variant=variant, activation=activation, resolution=48, num_classes=11)
    assert_equal(network, written(network, format, tmp_path), format, "timm")


@pytest.mark.parametrize("pool", ["average", "attention"])
@pytest.mark.parametrize("format", ["timm", "npz"])
def test_timm_pools_as_we_do(tmp_path, pool, format):
    network = random_network(variant="Ti/16", pool=pool, resolution=48, num_classes=11)
    assert_equal(network, written(network, format, tmp_path), format, "timm")


def test_sizes_and_settings_of_ones_own_are_understood(tmp_path):
    network = random_network(width=96, num_heads=3, mlp_dim=200, patch_size=5, resolution=15, num_classes=40)
    for format, by in (("hf", "transformers"), ("timm", "timm"), ("npz", "timm")):
        assert_equal(network, written(network, format, tmp_path / format), format, by)
    epsilon = random_network(width=96, num_heads=3, mlp_dim=200, layer_norm_epsilon=0.1, num_classes=40)
    assert_equal(epsilon, written(epsilon, "hf", tmp_path / "epsilon"), "hf", "transformers")
    none = random_network(width=96, num_heads=3, mlp_dim=200, position="none", num_classes=40)
    assert_equal(none, written(none, "timm", tmp_path / "none"), "timm", "timm")


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_in_float64_the_logits_are_equal_but_for_its_rounding(tmp_path, activation):
    import transformers

    network = random_network(width=96, num_heads=3, mlp_dim=200, resolution=16, num_classes=40, activation=activation)
    folder = written(network, "hf", tmp_path)
    theirs = transformers.ViTForImageClassification.from_pretrained(folder).double().eval()
    images = random_images(2, 16).double()
    with torch.inference_mode():
        expected, found = theirs(images).logits, network.module().double()(images)
    assert expected.std() > 0.5
    assert (found - expected).abs().max() <= 1e-10


def test_another_gelu_and_another_epsilon_do_not_pass(tmp_path):
    network = random_network(variant="Ti/16", activation="gelu", resolution=48, num_classes=11)
    for field, value in (("activation", "gelu_tanh"), ("layer_norm_epsilon", 1e-4)):
        other = Network(**{**vars(network), "config": network.config.model_copy(update={field: value})})
        found = parity.check(network, written(other, "hf", tmp_path / field), "hf")
        assert not found.equal


def test_a_last_layer_of_zeros_hides_nothing(tmp_path):
    network = random_network(variant="Ti/16", activation="gelu", resolution=48, num_classes=11)
    network.state["head.weight"].zero_()
    assert_difference = parity.check(network, written(network, "hf", tmp_path / "same"), "hf")
    assert assert_difference.equal
    assert assert_difference.greatest_logit > 0.5
    other = Network(**{**vars(network), "config": network.config.model_copy(update={"activation": "gelu_tanh"})})
    assert not parity.check(network, written(other, "timm", tmp_path / "other"), "timm").equal


def test_a_library_that_is_not_there_is_told(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    network = random_network()
    found = parity.check(network, written(network, "hf", tmp_path), "hf")
    assert (found.compared_with, found.greatest_difference) == ("our own reader", 0.0)
    assert "transformers" in found.note


def test_timm_makes_the_hidden_size_that_was_meant():
    assert [(w, m) for w in range(1, 300) for m in range(1, 700, 3) if int(w * mlp_ratio(w, m)) != m] == []
