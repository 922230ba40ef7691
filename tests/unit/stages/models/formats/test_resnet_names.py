"""Names and layouts of ResNets: held against timm's own networks, and against its reader of Google's files."""

import numpy as np
import pytest
import torch

from stages.models.formats.npz_file import write_npz
from stages.models.formats.resnet_names import STEM, bit_rules, stem_rules, without_numbers
from stages.models.formats.rules import inward, outward
from stages.models.resnet_config import BitConfig, StemConfig
from tests.unit.stages.models.peers import import_timm, randomize


@pytest.fixture(scope="module")
def timm():
    return import_timm()


@pytest.mark.parametrize(
    ("name", "blocks"), [("vit_small_r26_s32_224", (2, 2, 2, 2)), ("vit_base_r50_s16_224", (3, 4, 9))]
)
def test_a_stems_arrays_are_timms_and_go_there_and_back(timm, name, blocks):
    with torch.device("meta"):
        theirs = timm.create_model(name).state_dict()
    stem = {key: value for key, value in theirs.items() if key.startswith(f"{STEM}.")}
    rules = list(stem_rules(StemConfig(blocks=blocks)))
    assert {rule.ours for rule in rules} == set(stem)
    generator = torch.Generator().manual_seed(0)
    state = {key: torch.randn(value.shape, generator=generator) for key, value in stem.items()}
    arrays = outward(rules, state, 1)
    assert tuple(arrays["conv_root/kernel"].shape) == (7, 7, 3, 64)
    assert tuple(arrays["block1/unit1/conv_proj/kernel"].shape) == (1, 1, 64, 256)
    back = inward(rules, arrays.__getitem__)
    assert all(torch.equal(back[key], value) for key, value in state.items())


def test_b_16_on_r50_has_358_arrays(timm):
    from stages.models.config import ModelConfig
    from stages.models.formats.google_names import rules

    whole = [*rules(ModelConfig.model_validate({"variant": "R50+B/16", "head": "mlp_tanh"}))]
    names = {name for rule in whole for name in rule.theirs}
    assert len(names) == 358


def under_our_names(state):
    """The last layer is a convolution there."""
    found = {key: value for key, value in state.items() if not key.startswith("head.")}
    return {**found, "head.weight": state["head.fc.weight"][:, :, 0, 0], "head.bias": state["head.fc.bias"]}


@pytest.mark.parametrize("layers", ["R50x1"])
def test_a_bits_file_is_read_by_timm_as_it_is_meant(timm, tmp_path, layers):
    theirs = timm.create_model("resnetv2_50x1_bit", num_classes=5).eval()
    other = timm.create_model("resnetv2_50x1_bit", num_classes=5).eval()
    randomize(theirs)
    rules = list(bit_rules(BitConfig.model_validate(layers)))
    state = under_our_names(theirs.state_dict())
    assert {rule.ours for rule in rules} == set(state)
    write_npz(tmp_path / "bit.npz", outward(rules, state, 1))
    other.load_pretrained(str(tmp_path / "bit.npz"))
    found = under_our_names(other.state_dict())
    assert all(torch.equal(found[key], value) for key, value in state.items())
    with np.load(tmp_path / "bit.npz") as file:
        assert file["resnet/head/conv2d/kernel"].shape == (1, 1, 2048, 5)
        back = inward(rules, lambda name: torch.from_numpy(file[name]))
    assert all(torch.equal(back[key], value) for key, value in state.items())


def test_numbers_of_modules_are_noise():
    assert without_numbers("resnet/block1/unit01/a/standardized_conv2d_12/kernel") == (
        "resnet/block1/unit01/a/standardized_conv2d/kernel"
    )
    assert without_numbers("resnet/block1/unit01/a/group_norm/gamma") == "resnet/block1/unit01/a/group_norm/gamma"
