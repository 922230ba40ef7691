"""First weights against those of `vit_jax/models_vit.py`: flax's initialisers, stated by their moments."""

import math

import pytest
import torch

from stages.models.build import build
from stages.models.config import model_config
from stages.models.initialize import initialize
from stages.models.vit import VisionTransformer
from tests.unit.stages.models.outputs import small_config

SHAPE = {"width": 64, "depth": 2, "mlp_dim": 256, "num_heads": 4, "patch_size": 8, "head": "mlp_tanh"}


def fresh(seed=3, resolution=64, num_classes=10, **fields):
    return initialized(small_config(**{**SHAPE, **fields}), seed, resolution, num_classes)


def initialized(config, seed=3, resolution=64, num_classes=10):
    model = build(config, resolution, num_classes)
    with torch.no_grad():  # Nothing may be left as it was.
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    initialize(model, seed)
    return model


def assert_uniform(weight, fan_in, fan_out):
    """Xavier uniform: variance 2 / (fan_in + fan_out), the bound being the deviation times root 3."""
    bound = math.sqrt(6 / (fan_in + fan_out))
    assert 0.99 * bound < weight.abs().max() <= bound
    assert weight.std() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert abs(weight.mean()) < 0.05 * bound


def assert_truncated_normal(weight, fan_in):
    """LeCun normal: variance 1 / fan_in, cut at two deviations of the normal before it was cut."""
    deviation = math.sqrt(1 / fan_in)
    assert weight.std() == pytest.approx(deviation, rel=0.03)
    assert 1.9 * deviation < weight.abs().max() <= 2 * deviation / 0.8796
    # A normal cut there has less in its tails than one that is not (kurtosis 2.37, not 3), more than a uniform (1.8).
    assert 2.2 < (weight**4).mean() / (weight**2).mean() ** 2 < 2.55


def assert_normal(values, deviation):
    assert values.std() == pytest.approx(deviation, rel=0.1)
    assert abs(values.mean()) < 0.2 * deviation
    assert values.abs().max() > 2.4 * deviation


def test_every_parameter_begins_as_in_the_papers_code():
    model = fresh(head_bias=-10.0)
    left = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for i in range(2):
        for part in left.pop(f"blocks.{i}.attn.qkv.weight").chunk(3):
            assert_uniform(part, 64, 64)  # Each by itself, not as one kernel of 64 × 192.
        assert_uniform(left.pop(f"blocks.{i}.attn.proj.weight"), 64, 64)
        assert_uniform(left.pop(f"blocks.{i}.mlp.fc1.weight"), 64, 256)
        assert_uniform(left.pop(f"blocks.{i}.mlp.fc2.weight"), 256, 64)
    names = [f"blocks.{i}.mlp.{layer}.bias" for i in range(2) for layer in ("fc1", "fc2")]
    assert_normal(torch.cat([left.pop(name) for name in names]), 1e-6)
    assert_normal(left.pop("pos_embed"), 0.02)
    assert_truncated_normal(left.pop("patch_embed.proj.weight"), 8 * 8 * 3)
    assert_truncated_normal(left.pop("pre_logits.fc.weight"), 64)
    assert torch.equal(left.pop("head.bias"), torch.full((10,), -10.0))
    for name in [name for name in left if "norm" in name and name.endswith("weight")]:
        assert torch.equal(left.pop(name), torch.ones(64))
    zeros = {"cls_token", "head.weight", "patch_embed.proj.bias", "pre_logits.fc.bias", "norm.bias"}
    zeros |= {f"blocks.{i}.{name}.bias" for i in range(2) for name in ("attn.qkv", "attn.proj", "norm1", "norm2")}
    assert set(left) == zeros
    assert all(not parameter.any() for parameter in left.values())


@pytest.mark.parametrize(
    ("fields", "drawn"),
    [
        ({"position": "learned_2d"}, {"positions.x", "positions.y"}),
        ({"position": "learned_2d", "position_at": "each_layer"}, {"blocks.0.positions.x", "blocks.0.positions.y",
         "blocks.1.positions.x", "blocks.1.positions.y"}),
        ({"position": "learned", "position_at": "each_layer"}, {"blocks.0.pos_embed", "blocks.1.pos_embed"}),
        ({"position": "relative"}, {"blocks.0.attn.relative.keys", "blocks.1.attn.relative.keys"}),
        ({"position": "sincos_2d"}, set()),
    ],
)  # fmt: skip
def test_position_embeddings_of_all_kinds_begin_as_the_learned_ones(fields, drawn):
    model = fresh(**fields)
    plain = dict(fresh(position="none").named_parameters())
    own = {name: p.detach() for name, p in model.named_parameters() if name not in plain}
    # The class token's own place beside tables of rows and columns is one of them.
    assert {name for name in own if not name.endswith("positions.prefix")} == drawn
    for values in own.values():
        # Four deviations of the mean, and of the deviation, of so many draws.
        assert values.std() == pytest.approx(0.02, rel=4 / (2 * values.numel()) ** 0.5)
        assert abs(values.mean()) < 4 * 0.02 / values.numel() ** 0.5


def test_attention_pooling_begins_as_in_big_vision():
    model = fresh(pool="attention", head="mlp_gelu")
    left = {name: p.detach() for name, p in model.named_parameters() if name.startswith("attn_pool.")}
    assert_uniform(left.pop("attn_pool.q.weight"), 64, 64)
    for part in left.pop("attn_pool.kv.weight").chunk(2):
        assert_uniform(part, 64, 64)
    assert_uniform(left.pop("attn_pool.proj.weight"), 64, 64)
    assert_uniform(left.pop("attn_pool.mlp.fc1.weight"), 64, 256)
    assert_uniform(left.pop("attn_pool.mlp.fc2.weight"), 256, 64)
    biases = [left.pop(f"attn_pool.mlp.{layer}.bias") for layer in ("fc1", "fc2")]
    assert_normal(torch.cat(biases), 1e-6)
    latent = left.pop("attn_pool.latent")
    # A query is a kernel from one input to the width.
    bound = math.sqrt(6 / (1 + 64))
    assert 0.8 * bound < latent.abs().max() <= bound
    assert torch.equal(left.pop("attn_pool.norm.weight"), torch.ones(64))
    assert set(left) == {f"attn_pool.{name}.bias" for name in ("q", "kv", "proj", "norm")}
    assert all(not values.any() for values in left.values())
    assert_truncated_normal(model.get_parameter("pre_logits.fc.weight").detach(), 64)


def assert_convolutions(left):
    """Those of a ResNet, taken out of what is left to look at."""
    names = [name for name in left if name.split(".")[-2].startswith("conv")]
    for name in names:
        kernel = left.pop(name)
        assert_truncated_normal(kernel, kernel[0].numel())
    return len(names)


def test_a_stem_begins_as_its_shortcuts():
    model = initialized(small_config(patch_size=1, stem={"blocks": (2, 1)}))
    left = {name: p.detach() for name, p in model.named_parameters() if name.startswith("patch_embed.backbone.")}
    assert assert_convolutions(left) == 1 + 3 * 3 + 2
    for name, parameter in left.items():
        zero = name.endswith(("bias", "norm3.weight"))
        assert torch.equal(parameter, torch.zeros_like(parameter) if zero else torch.ones_like(parameter))
    assert sum(name.endswith("norm3.weight") for name in left) == 3


def test_bit_begins_as_in_big_vision():
    model = initialized(model_config({"blocks": (1, 2, 1, 1), "head_bias": -10.0}))
    left = {name: parameter.detach() for name, parameter in model.named_parameters()}
    assert assert_convolutions(left) == 1 + 5 * 3 + 4
    assert torch.equal(left.pop("head.bias"), torch.full((10,), -10.0))
    assert not left.pop("head.weight").any()
    for name, parameter in left.items():
        assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight"))))
    assert torch.equal(model(torch.zeros(2, 3, 64, 64)), torch.full((2, 10), -10.0))


def test_the_first_logits_are_the_heads_bias():
    images = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    assert torch.equal(fresh(head_bias=-10.0)(images), torch.full((2, 10), -10.0))


def drawn(model):
    """The tensors that are neither zeros nor ones."""
    return {name: p for name, p in model.named_parameters() if p.unique().numel() > 1}


def test_a_seed_gives_its_weights_whatever_was_drawn_before():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = fresh()
        torch.manual_seed(2)
        second = fresh()
        model = VisionTransformer(small_config(), 8, 3)
        before = torch.random.get_rng_state()
        initialize(model, 0)
        assert torch.equal(torch.random.get_rng_state(), before)
    for (name, one), other in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_another_seed_gives_other_weights():
    one, other = drawn(fresh(seed=3)), drawn(fresh(seed=4))
    assert len(one) == 16 - 1  # Without the head there are 2 × 6 in the blocks and 3 more.
    assert all(not torch.equal(one[name], other[name]) for name in one)


def test_no_two_tensors_of_a_shape_are_alike():
    one = drawn(fresh())
    assert not torch.equal(one["blocks.0.attn.qkv.weight"], one["blocks.1.attn.qkv.weight"])
    q, k, v = one["blocks.0.attn.qkv.weight"].chunk(3)
    assert not torch.equal(q, k)
    assert not torch.equal(k, v)


def test_a_tensor_does_not_depend_on_what_else_there_is():
    whole, other = fresh(), fresh(depth=1, head="linear", num_classes=3)
    state = whole.state_dict()
    for name, tensor in other.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(tensor, state[name]), name
