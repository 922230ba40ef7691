import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cluster.errors import UserError
from stages.models.config import HYBRIDS, VARIANTS, ModelConfig, model_config
from stages.models.resnet_config import BitConfig, StemConfig
from tests.unit.stages.models.outputs import small_config


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_a_whole_shape_and_survives_json(variant):
    config = ModelConfig.model_validate({"variant": variant})
    assert {name: getattr(config, name) for name in VARIANTS[variant]} == VARIANTS[variant]
    assert ModelConfig.model_validate(config.model_dump(mode="json")) == config


def test_what_is_given_beside_a_variant_overrides_it():
    # The paper's ViT-b/32 (Fig. 4) is ViT-B with all hidden sizes halved.
    config = ModelConfig.model_validate({"variant": "B", "width": 384, "mlp_dim": 1536, "num_heads": 6})
    assert (config.width, config.depth, config.mlp_dim, config.num_heads) == (384, 12, 1536, 6)


@pytest.mark.parametrize("name", ["B/32", "ViT-B/32"])
def test_a_whole_name_is_a_size_and_a_patch_size(name):
    expected = ModelConfig.model_validate({"variant": "B", "patch_size": 32, "dropout": 0.1})
    assert ModelConfig.model_validate({"variant": name, "dropout": 0.1}) == expected
    assert ModelConfig.model_validate(name) == expected.model_copy(update={"dropout": 0.0})


def test_hybrids_and_resnets_have_names_too():
    hybrid = model_config("R50+ViT-B/16")
    assert isinstance(hybrid, ModelConfig)
    assert hybrid.stem is not None
    assert (hybrid.variant, hybrid.stem.blocks, hybrid.stride, hybrid.tokens(224)) == ("B", (3, 4, 9), 16, 197)
    assert {name: model_config(name).stride for name in HYBRIDS} == {
        name: 32 if name == "R+Ti/16" else int(name.rpartition("/")[2]) for name in HYBRIDS
    }
    resnet = model_config({"variant": "R152x2", "head_bias": -10})
    assert isinstance(resnet, BitConfig)
    assert (resnet.blocks, resnet.features, resnet.head_bias) == ((3, 8, 36, 3), 4096, -10)
    assert [model_config(config.model_dump(mode="json")) for config in (hybrid, resnet)] == [hybrid, resnet]


@pytest.mark.parametrize("name", ["XXL", "B/0", "R50+B/8", "R51x1", "R50x0"])
def test_a_name_that_is_none_is_told_with_those_that_are(name):
    with pytest.raises(ValidationError, match=rf"got '{re.escape(name)}', expected one of .*R50x1"):
        model_config(name)


def test_missing_sizes_are_named_with_the_variants_to_choose_from():
    with pytest.raises(ValidationError, match=r"depth, num_heads not given: name a variant \(Ti, S, B, L, H, g, G\)"):
        ModelConfig.model_validate({"width": 16, "mlp_dim": 32})
    with pytest.raises(ValidationError, match="variant"):
        ModelConfig.model_validate({"variant": "XXL"})


@pytest.mark.parametrize("name", [*HYBRIDS, "B/16", "R50x1", "R152x4"])
def test_a_network_is_known_by_its_name_and_survives_json(name):
    config = model_config(name)
    assert model_config(config.model_dump(mode="json")) == config
    assert config.title.replace("ViT-", "") == name


@pytest.mark.parametrize(
    ("name", "grid"), [("R+Ti/16", 7), ("R26+S/32", 7), ("R50+B/16", 14), ("R50+L/32", 7), ("R50x1", 7)]
)
def test_grids_at_224_pixels_are_those_of_the_papers_code(name, grid):
    assert model_config(name).grid(224) == grid


def test_a_hybrids_resolution_has_to_suit_stem_and_patches():
    config = model_config("R50+B/16")
    with pytest.raises(
        UserError, match="resolution=100 is not a multiple of the stem's stride times patch_size=16: try"
    ):
        config.grid(100)


def test_a_network_for_finetuning_has_a_fresh_linear_head():
    hybrid = model_config({"variant": "R50+B/16", "head": "mlp_tanh", "head_bias": -10, "stochastic_depth": 0.2})
    hybrid = hybrid.for_finetuning(0.1, 0.0)
    assert isinstance(hybrid, ModelConfig)
    assert (hybrid.stochastic_depth, hybrid.for_finetuning(0.0, 0.3).stochastic_depth) == (0.0, 0.3)
    assert (hybrid.head, hybrid.head_bias, hybrid.dropout, hybrid.title) == ("linear", 0, 0.1, "R50+ViT-B/16")
    bit = model_config({"variant": "R50x1", "head_bias": -10})
    assert isinstance(bit, BitConfig)
    assert bit.for_finetuning(0.0, 0.0) == model_config("R50x1")
    with pytest.raises(UserError, match=r"dropout=0\.1: a ResNet has none"):
        bit.for_finetuning(0.1, 0.0)
    with pytest.raises(UserError, match=r"stochastic_depth=0\.1: a ResNet has none"):
        bit.for_finetuning(0.0, 0.1)


def test_a_stage_without_blocks_is_refused():
    with pytest.raises(ValidationError, match=r"blocks=\[2, 0\]: expected 1 or more in each stage"):
        StemConfig(blocks=(2, 0))


def test_heads_must_share_the_width():
    with pytest.raises(ValidationError, match="width=16 is not a multiple of num_heads=3"):
        small_config(num_heads=3)


@given(patch_size=st.integers(1, 64), resolution=st.integers(1, 2048))
def test_a_resolution_that_does_not_fit_is_refused_with_its_nearest_neighbours(patch_size, resolution):
    config = small_config(patch_size=patch_size)
    if resolution % patch_size == 0:
        assert config.grid(resolution) * patch_size == resolution
        return
    with pytest.raises(UserError) as refusal:
        config.grid(resolution)
    problem, _, advice = str(refusal.value).partition(": try ")
    assert problem == f"resolution={resolution} is not a multiple of patch_size={patch_size}"
    lower, upper = (int(number) for number in advice.split(" or "))
    assert config.grid(lower) >= 1
    assert config.grid(upper) == config.grid(lower) + 1
    assert lower < resolution < upper or (resolution < patch_size == lower)


def test_shapes_and_costs_are_known_without_torch():
    code = "import sys, stages.models.config, stages.models.flops, stages.fewshot.config; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
