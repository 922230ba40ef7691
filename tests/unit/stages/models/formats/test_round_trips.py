"""From a network to a file and back: equal bytes where the format has a place for an array, else a refusal."""

import json

import pytest
import safetensors
import torch

from cluster.errors import UserError
from stages.models.config import ModelConfig
from stages.models.formats.files import read_network
from stages.models.formats.google_names import rules
from stages.models.formats.known import FORMATS
from stages.models.formats.network import Network, blank
from stages.models.formats.places import fitted
from stages.models.formats.rules import shapes
from tests.unit.stages.models.formats.networks import assert_same, logits, random_network, written

EPSILON = {"layer_norm_epsilon": 1e-3}
KEPT = [
    *((format, {}) for format in FORMATS),
    *((format, {"activation": "gelu"}) for format in FORMATS),
    *((format, EPSILON) for format in FORMATS if format != "timm"),
    *((format, {"pool": pool}) for format in FORMATS if format != "hf" for pool in ("average", "attention")),
    *((format, {"position": "none"}) for format in FORMATS if format != "hf"),
    *((format, {"head": "mlp_tanh"}) for format in ("npz", "safetensors")),
    *(
        ("safetensors", fields)
        for fields in (
            *({"position": position} for position in ("learned_2d", "relative", "sincos_1d", "sincos_2d")),
            *({"position_at": at} for at in ("each_layer", "each_layer_shared")),
            {"head": "mlp_gelu", "head_bias": -10.0, "dropout": 0.1, "stochastic_depth": 0.2},
        )
    ),
]


@pytest.mark.parametrize(("format", "fields"), KEPT)
def test_what_a_format_has_a_place_for_comes_back_bit_for_bit(tmp_path, format, fields):
    network = random_network(**fields)
    fit, dropped = fitted(network, format, drop=False)
    assert dropped == ()
    found = read_network(written(fit, format, tmp_path))
    assert (found.format, found.notes, found.left_out) == (format, (), ())
    assert_same(found.network, network)
    assert torch.equal(logits(found.network), logits(network))


def test_a_network_goes_round_all_formats_and_is_the_same_file_again(tmp_path):
    network = random_network(activation="gelu", layer_norm_epsilon=1e-6)
    first = written(network, "npz", tmp_path / "first")
    for number, format in enumerate(("timm", "hf", "npz", "safetensors", "hf", "timm", "npz")):
        network = read_network(written(network, format, tmp_path / f"{number}-{format}")).network
    last = written(network, "npz", tmp_path / "last")
    assert last.read_bytes() == first.read_bytes()
    assert last.with_suffix(".json").read_text() == first.with_suffix(".json").read_text()


def test_equal_networks_make_equal_files(tmp_path):
    for format in FORMATS:
        for turn in "ab":
            written(random_network(), format, tmp_path / turn / format)
        for file in (tmp_path / "a" / format).iterdir():
            assert file.read_bytes() == (tmp_path / "b" / format / file.name).read_bytes()


def test_names_of_classes_and_the_mode_of_resampling_travel_along(tmp_path):
    network = random_network(num_classes=3)
    named = Network(**{**vars(network), "classes": ("cat", "dog", "cat"), "about": {"resampling": "bicubic"}})
    for format in FORMATS:
        found = read_network(written(named, format, tmp_path / format)).network
        assert (found.classes, found.about) == (named.classes, named.about)


def test_the_published_file_of_b_16_has_its_202_arrays_and_shapes():
    config = ModelConfig.model_validate({"variant": "B/16", "head": "mlp_tanh"})
    found = shapes(rules(config), blank(config, 224, 21843), 12)
    assert len(found) == 202
    block = "Transformer/encoderblock_11"
    assert {name: found[name] for name in found if not name.startswith("Transformer/encoderblock_")} == {
        "cls": (1, 1, 768), "embedding/kernel": (16, 16, 3, 768), "embedding/bias": (768,),
        "Transformer/posembed_input/pos_embedding": (1, 197, 768), "Transformer/encoder_norm/scale": (768,),
        "Transformer/encoder_norm/bias": (768,), "pre_logits/kernel": (768, 768), "pre_logits/bias": (768,),
        "head/kernel": (768, 21843), "head/bias": (21843,),
    }  # fmt: skip
    attention = f"{block}/MultiHeadDotProductAttention_1"
    expected = {f"{attention}/{name}/kernel": (768, 12, 64) for name in ("query", "key", "value")}
    expected |= {f"{attention}/{name}/bias": (12, 64) for name in ("query", "key", "value")}
    expected |= {f"{attention}/out/kernel": (12, 64, 768), f"{attention}/out/bias": (768,)}
    expected |= {f"{block}/LayerNorm_{number}/{part}": (768,) for number in (0, 2) for part in ("scale", "bias")}
    expected |= {f"{block}/MlpBlock_3/Dense_0/kernel": (768, 3072), f"{block}/MlpBlock_3/Dense_0/bias": (3072,)}
    expected |= {f"{block}/MlpBlock_3/Dense_1/kernel": (3072, 768), f"{block}/MlpBlock_3/Dense_1/bias": (768,)}
    assert {name: found[name] for name in found if name.startswith(f"{block}/")} == expected


@pytest.mark.parametrize(
    ("format", "fields", "message"),
    [
        ("timm", {"head": "mlp_tanh"}, r"timm has no place for pre_logits\.fc\.weight, pre_logits\.fc\.bias: --drop"),
        ("hf", {"head": "mlp_tanh"}, r"hf has no place for pre_logits\.fc\.weight"),
        ("npz", {"head": "mlp_gelu"}, r"npz has no place for pre_logits\.fc\.weight"),
        ("npz", {"position": "learned_2d"}, r"no place for positions\.x, positions\.y, positions\.prefix: --drop"),
        ("hf", {"position": "relative"}, r"no place for blocks\.0\.attn\.relative\.keys, blocks\.1\.attn\.relative"),
        ("timm", {"position": "sincos_2d"}, r"timm has no place for position=sincos_2d"),
        ("npz", {"position_at": "each_layer"}, r"npz has no place for blocks\.0\.pos_embed, blocks\.1\.pos_embed"),
        ("timm", {"position_at": "each_layer_shared"}, r"timm has no place for pos_embed"),
        ("timm", EPSILON, r"timm has no place for layer_norm_epsilon=0\.001: it is always 1e-06"),
        ("hf", {"position": "none"}, r"hf has no place for position=none"),
        ("hf", {"pool": "average"}, r"hf has no place for the mean over tokens: its networks always have a class tok"),
        ("hf", {"pool": "attention"}, r"hf has no place for attn_pool\.latent, attn_pool\.q\.weight, .* and 7 more"),
    ],
)
def test_what_a_format_has_no_place_for_is_refused_by_name_or_dropped(tmp_path, format, fields, message):
    network = random_network(**fields)
    with pytest.raises(UserError, match=message):
        fitted(network, format, drop=False)
    if "pool" in fields or fields == EPSILON:
        # Nothing of it would be left, or there is nothing to leave out.
        with pytest.raises(UserError, match=message):
            fitted(network, format, drop=True)
        return
    fit, dropped = fitted(network, format, drop=True)
    found = read_network(written(fit, format, tmp_path)).network
    assert_same(found, fit)
    kept = [name for name in network.state if name not in dropped]
    assert all(torch.equal(found.state[name], network.state[name]) for name in kept)
    assert dropped
    # Embeddings of zeros are the same as none; all else that was dropped is missed.
    assert torch.equal(logits(found), logits(network)) == (fields == {"position": "none"})


def test_files_for_others_have_their_names_and_settings(tmp_path):
    network = random_network(activation="gelu_tanh", num_classes=2)
    with safetensors.safe_open(written(network, "hf", tmp_path / "hf") / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert "vit.encoder.layer.1.attention.attention.query.weight" in set(file.keys())
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["hidden_act"], config["layer_norm_eps"]) == ("gelu_pytorch_tanh", 1e-6)
    assert (config["image_size"], config["patch_size"], config["id2label"]) == (12, 4, {"0": "LABEL_0", "1": "LABEL_1"})
    preprocessor = json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())
    assert (preprocessor["image_mean"], preprocessor["size"]) == ([0.5] * 3, {"height": 12, "width": 12})
    written(random_network(pool="average"), "timm", tmp_path / "timm")
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert {"act_layer": "gelu_tanh", "fc_norm": False, "class_token": False}.items() <= config["model_args"].items()
    assert (config["pretrained_cfg"]["mean"], config["pretrained_cfg"]["std"]) == ([0.5] * 3, [0.5] * 3)
