import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cluster.errors import UserError
from stages.models.config import VARIANTS, ModelConfig
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


def test_missing_sizes_are_named_with_the_variants_to_choose_from():
    with pytest.raises(ValidationError, match=r"depth, num_heads not given: name a variant \(Ti, S, B, L, H, g, G\)"):
        ModelConfig.model_validate({"width": 16, "mlp_dim": 32})
    with pytest.raises(ValidationError, match="variant"):
        ModelConfig.model_validate({"variant": "XXL"})


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
