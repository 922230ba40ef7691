"""The network against a statement of the paper's formulas in numpy, and what dropout does to it."""

import math

import numpy as np
import pytest
import torch
from scipy.special import erf
from torch.nn import functional

from stages.models.blocks import explicit_attention, fused_attention
from stages.models.config import ModelConfig
from stages.models.vit import VisionTransformer
from tests.unit.stages.models.outputs import random_images, random_model, small_config
from tests.unit.stages.models.peers import import_timm, randomize


def random_weights(config, resolution, num_classes, seed):
    """Random float64 arrays in the layout of the published files: kernels by head, HWIO patches."""
    random = np.random.default_rng(seed)
    width, heads, mlp, side = config.width, config.num_heads, config.mlp_dim, config.patch_size
    per_head = width // heads
    tokens = (resolution // side) ** 2 + (config.pool == "token")

    def dense(inputs, outputs):
        scale = 1.5 / math.sqrt(np.prod(inputs))
        return scale * random.normal(size=(*inputs, *outputs)), 0.5 * random.normal(size=outputs)

    def norm():
        return 1 + 0.3 * random.normal(size=width), 0.3 * random.normal(size=width)

    def block():
        inward = {name: dense((width,), (heads, per_head)) for name in ("query", "key", "value")}
        outward = {"out": dense((heads, per_head), (width,))}
        hidden = {"dense_0": dense((width,), (mlp,)), "dense_1": dense((mlp,), (width,))}
        return {"norm_0": norm(), "norm_1": norm(), **inward, **outward, **hidden}

    return {
        "embedding": dense((side, side, config.in_channels), (width,)),
        "cls": random.normal(size=(1, 1, width)),
        "posembed": random.normal(size=(1, tokens, width)),
        "blocks": [block() for _ in range(config.depth)],
        "norm": norm(),
        "pre_logits": dense((width,), (width,)),
        "head": dense((width,), (num_classes,)),
    }


def paper_logits(weights, images, config):
    """Equations 1 to 4 of the paper, in float64."""
    side, grid = config.patch_size, images.shape[2] // config.patch_size
    corners = [(row * side, column * side) for row in range(grid) for column in range(grid)]
    patches = np.stack([images[:, :, y : y + side, x : x + side] for y, x in corners], axis=1)
    kernel, bias = weights["embedding"]
    z = np.einsum("bnchw,hwcd->bnd", patches, kernel) + bias
    if config.pool == "token":
        z = np.concatenate([np.repeat(weights["cls"], len(z), axis=0), z], axis=1)
    z = z + weights["posembed"]
    for block in weights["blocks"]:
        z = z + self_attention(layer_norm(z, block["norm_0"], config), block)
        z = z + mlp(layer_norm(z, block["norm_1"], config), block, config.activation)
    z = layer_norm(z, weights["norm"], config)
    y = z[:, 0] if config.pool == "token" else z.sum(axis=1) / z.shape[1]
    if config.head == "mlp_tanh":
        y = np.tanh(y @ weights["pre_logits"][0] + weights["pre_logits"][1])
    return y @ weights["head"][0] + weights["head"][1]


def layer_norm(z, scale_and_bias, config):
    centred = z - z.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + config.layer_norm_epsilon) * scale_and_bias[0] + scale_and_bias[1]


def self_attention(z, block):
    """Equations 5 to 8 of the paper's appendix A, each head's product by itself."""
    q, k, v = (np.einsum("bnd,dhk->bhnk", z, block[n][0]) + block[n][1][:, None] for n in ("query", "key", "value"))
    energies = np.exp(np.einsum("bhik,bhjk->bhij", q, k) / math.sqrt(q.shape[-1]))
    attention = energies / energies.sum(axis=-1, keepdims=True)
    kernel, bias = block["out"]
    return np.einsum("bhik,hkd->bid", np.einsum("bhij,bhjk->bhik", attention, v), kernel) + bias


def mlp(z, block, activation):
    h = z @ block["dense_0"][0] + block["dense_0"][1]
    if activation == "gelu":
        h = h * (1 + erf(h / math.sqrt(2))) / 2
    else:  # Hendrycks and Gimpel's approximation, jax's default and so the paper's.
        h = h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3))) / 2
    return h @ block["dense_1"][0] + block["dense_1"][1]


def timm_state(weights, config):
    """The same weights under timm's names, by the map of timm's own loader (`_load_weights`)."""
    width, state = config.width, {"pos_embed": weights["posembed"]}
    if config.pool == "token":
        state["cls_token"] = weights["cls"]

    def put(name, kernel, bias):
        state[f"{name}.weight"], state[f"{name}.bias"] = kernel, bias

    kernel, bias = weights["embedding"]
    put("patch_embed.proj", kernel.transpose(3, 2, 0, 1), bias)
    for i, block in enumerate(weights["blocks"]):
        inward = [block[name] for name in ("query", "key", "value")]
        kernels = [kernel.reshape(width, width).T for kernel, _ in inward]
        put(f"blocks.{i}.attn.qkv", np.concatenate(kernels), np.concatenate([bias.ravel() for _, bias in inward]))
        put(f"blocks.{i}.attn.proj", block["out"][0].reshape(width, width).T, block["out"][1])
        for name, (kernel, bias) in (("fc1", block["dense_0"]), ("fc2", block["dense_1"])):
            put(f"blocks.{i}.mlp.{name}", kernel.T, bias)
        put(f"blocks.{i}.norm1", *block["norm_0"])
        put(f"blocks.{i}.norm2", *block["norm_1"])
    put("norm", *weights["norm"])
    if config.head == "mlp_tanh":
        put("pre_logits.fc", weights["pre_logits"][0].T, weights["pre_logits"][1])
    put("head", weights["head"][0].T, weights["head"][1])
    return {name: torch.tensor(np.ascontiguousarray(array)) for name, array in state.items()}


def assert_equal_to_the_paper(config, resolution):
    images = np.random.default_rng(1).uniform(-1, 1, (3, config.in_channels, resolution, resolution))
    weights = random_weights(config, resolution, 11, seed=2)
    model = VisionTransformer(config, resolution, 11).double().eval()
    model.load_state_dict(timm_state(weights, config))
    with torch.inference_mode():
        found = model(torch.from_numpy(images)).numpy()
    expected = paper_logits(weights, images, config)
    # Logits of one image and of several images both differ: nothing is compared with a constant.
    assert min(expected.std(axis=0).max(), expected.std(axis=1).max()) >= 0.5
    assert np.abs(found - expected).max() <= 1e-10


@pytest.mark.parametrize("pool", ["token", "average"])
@pytest.mark.parametrize("head", ["linear", "mlp_tanh"])
@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu"])
def test_logits_are_those_of_the_papers_formulas(pool, head, activation):
    # 5 × 5 patches and heads of 6: no size is a power of two, and no two sizes are alike.
    config = small_config(width=24, num_heads=4, mlp_dim=40, patch_size=5, pool=pool, head=head, activation=activation)
    assert_equal_to_the_paper(config, 15)


def test_epsilon_and_channels_are_those_of_the_config():
    assert_equal_to_the_paper(small_config(layer_norm_epsilon=0.1, in_channels=1, num_heads=1, patch_size=7), 14)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_fused_attention_is_attention_written_out(dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 17, 10, generator=generator, dtype=dtype) for _ in range(3))
    torch.testing.assert_close(fused_attention(q, k, v), explicit_attention(q, k, v), rtol=tolerance, atol=tolerance)


def test_features_are_what_the_last_layer_is_given():
    model, images = random_model(0, head="mlp_tanh"), random_images(3, 8)
    features = model.features(images)
    assert features.abs().max() <= 1  # After tanh.
    assert torch.equal(functional.linear(features, model.head.weight, model.head.bias), model(images))


def test_dropout_is_off_in_evaluation_and_random_in_training():
    model, plain, images = random_model(0, dropout=0.3), random_model(0), random_images(2, 8)
    assert torch.equal(model(images), plain(images))
    model.train()
    plain.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = model(images), model(images)
        torch.manual_seed(0)
        assert torch.equal(model(images), first)
    assert not torch.equal(first, second)
    assert torch.equal(plain(images), plain(images))


def test_dropout_is_at_the_papers_four_places():
    # Appendix B.1: after every dense layer except the qkv projections, and after adding the position embeddings.
    model = random_model(0, resolution=64, depth=1, dropout=0.5).train()
    seen = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _, inputs, output, name=name: seen.update({name: (inputs[0], output)}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model(random_images(4, 64))
    stream, between, after = (seen[name][0] for name in ("blocks.0.norm1", "blocks.0.norm2", "norm"))
    patches = seen["patch_embed"][1]
    embedded = torch.cat([model.cls_token.expand(4, -1, -1), patches], dim=1) + model.pos_embed
    hidden = functional.gelu(seen["blocks.0.mlp.fc1"][1], approximate="tanh")
    for dropped, whole in (
        (stream, embedded),
        (between - stream, seen["blocks.0.attn"][1]),
        (seen["blocks.0.mlp.fc2"][0], hidden),
        (after - between, seen["blocks.0.mlp"][1]),
    ):
        ratio = dropped / whole
        kept = ratio.abs() > 1
        assert abs(kept.float().mean() - 0.5) < 0.03
        large = whole.abs() > 0.1  # Elsewhere the difference of two sums is rounding.
        torch.testing.assert_close(ratio[large], 2.0 * kept[large].float(), rtol=0, atol=1e-3)
    # And nowhere else: neither on the attention's input nor on what the head is given.
    assert torch.equal(seen["blocks.0.attn.qkv"][0], seen["blocks.0.norm1"][1])
    assert torch.equal(seen["head"][0], seen["norm"][1][:, 0])


def test_attention_pooling_drops_nothing_out():
    model = random_model(0, resolution=8, depth=1, pool="attention", dropout=0.5).train()
    tokens = torch.randn(2, 5, model.config.width, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.attn_pool(tokens), model.attn_pool(tokens))


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
@pytest.mark.parametrize(("name", "peer"), [("Ti/16", "vit_tiny"), ("S/16", "vit_small"), ("B/16", "vit_base")])
def test_logits_are_timms(name, peer, activation):
    timm = import_timm()
    config = ModelConfig.model_validate({"variant": name, "activation": activation})
    ours = VisionTransformer(config, 96, 11).eval()
    randomize(ours)
    theirs = timm.create_model(f"{peer}_patch16_224", img_size=96, num_classes=11, act_layer=activation).eval()
    theirs.load_state_dict(ours.state_dict())
    images = random_images(2, 96)
    with torch.inference_mode():
        expected, found = theirs(images), ours(images)
    assert expected.std() > 0.5
    assert (found - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))
