"""Hybrids and BiT from a network to a file and back, and files of them as others write them."""

import functools
import json
import re

import numpy as np
import pytest
import safetensors.torch
import torch

from cluster.errors import UserError
from stages.models.config import model_config
from stages.models.formats.beside import Overrides
from stages.models.formats.files import read_network
from stages.models.formats.google import rules_of
from stages.models.formats.known import FORMATS
from stages.models.formats.network import Network, blank
from stages.models.formats.places import fitted
from stages.models.formats.rules import shapes
from stages.models.formats.timm_resnets import as_computed
from tests.unit.stages.models.formats.networks import (
    assert_same,
    google_arrays,
    random_network,
    save,
    written,
)

ROOT_ALONE = {"stem": {}, "patch_size": 2, "resolution": 16}
HYBRID = {"stem": {"blocks": (1, 2)}, "patch_size": 1, "resolution": 16}
BIT = {"blocks": (1, 1, 2, 1), "resolution": 40}
NAMED = {"stem": {"blocks": (2, 2, 2, 2)}, "patch_size": 1, "resolution": 64}
"""Of a size of its own behind a stem that timm has."""


@pytest.mark.parametrize(
    ("format", "fields"),
    [
        *((format, ROOT_ALONE) for format in FORMATS),
        *((format, fields) for format in FORMATS if format != "timm" for fields in (HYBRID, BIT)),
        ("timm", NAMED),
        ("timm", {"variant": "R50x1", "resolution": 40}),
        ("npz", {**HYBRID, "pool": "average", "head": "mlp_tanh"}),
        ("hf", {**BIT, "width_factor": 2, "in_channels": 1}),
        ("timm", {**ROOT_ALONE, "in_channels": 1}),
        ("npz", {**HYBRID, "stem": {"blocks": (1, 1), "width_factor": 2, "epsilon": 1e-3}}),
        ("npz", {**BIT, "epsilon": 1e-6, "group_norm_epsilon": 1e-4}),
    ],
)
def test_what_a_format_has_a_place_for_comes_back_bit_for_bit(tmp_path, format, fields):
    network = random_network(**fields)
    fit, dropped = fitted(network, format, drop=False)
    assert (fit, dropped) == (network, ())
    found = read_network(written(network, format, tmp_path))
    assert (found.format, found.notes, found.left_out) == (format, (), ())
    assert_same(found.network, network)


@pytest.mark.parametrize("fields", [{**NAMED, "activation": "gelu"}, {"variant": "R50x1", "resolution": 40}])
def test_a_network_goes_round_all_formats_and_is_the_same_file_again(tmp_path, fields):
    network = random_network(**fields)
    first = written(network, "npz", tmp_path / "first")
    for number, format in enumerate(("safetensors", "timm", "hf", "safetensors")):
        network = read_network(written(network, format, tmp_path / f"{number}-{format}")).network
    last = written(network, "npz", tmp_path / "last")
    assert last.read_bytes() == first.read_bytes()
    assert last.with_suffix(".json").read_text() == first.with_suffix(".json").read_text()


def test_the_published_files_have_their_arrays_and_shapes():
    hybrid = model_config({"variant": "R50+B/16", "head": "mlp_tanh"})
    found = shapes(rules_of(hybrid), blank(hybrid, 224, 21843), 12)
    assert len(found) == 358
    assert {name: found[name] for name in ("conv_root/kernel", "gn_root/scale", "block3/unit9/conv3/kernel",
                                           "block1/unit1/conv_proj/kernel", "embedding/kernel")} == {
        "conv_root/kernel": (7, 7, 3, 64), "gn_root/scale": (64,), "block3/unit9/conv3/kernel": (1, 1, 256, 1024),
        "block1/unit1/conv_proj/kernel": (1, 1, 64, 256), "embedding/kernel": (1, 1, 1024, 768),
    }  # fmt: skip
    bit = model_config("R50x1")
    found = shapes(rules_of(bit), blank(bit, 224, 21843), 1)
    # A kernel, scale and shift for each of 3 convolutions of 16 units; four shortcuts, root, last norm and layer.
    assert len(found) == 16 * 9 + 4 + 1 + 2 + 2
    assert found["resnet/head/conv2d/kernel"] == (1, 1, 2048, 21843)
    assert found["resnet/block4/unit01/a/proj/standardized_conv2d/kernel"] == (1, 1, 1024, 2048)
    assert found["resnet/block2/unit04/b/group_norm/gamma"] == (128,)


@pytest.mark.parametrize("prefix", ["", "opt/target/", "params/"])
@pytest.mark.parametrize("fields", [ROOT_ALONE, HYBRID, BIT])
def test_googles_files_are_read_below_every_prefix_with_norms_of_four_axes(tmp_path, prefix, fields):
    network = random_network(**fields)
    arrays = {}
    for number, (name, value) in enumerate(google_arrays(network).items()):
        if re.search(r"gn_?\w*/|group_norm/", name):
            value = value[None, None, None]
        # Some of BiT's files number their modules.
        name = name.replace("standardized_conv2d/", f"standardized_conv2d_{number}/")
        arrays[f"{prefix}{name}"] = value
    found = read_network(
        save(tmp_path / "net.npz", {**arrays, **({"opt/state/step": np.float32(3)} if prefix else {})})
    )
    assert found.network.state.keys() == network.state.keys()
    assert all(torch.equal(found.network.state[name], value) for name, value in network.state.items())
    if "blocks" in fields:
        assert found.notes == ("nothing says so, and it is usual for such files: epsilon=1e-10, "
                               "group_norm_epsilon=1e-05, resolution=224",)  # fmt: skip
        assert found.network.config == network.config
        assert read_network(tmp_path / "net.npz", Overrides(resolution=480)).network.resolution == 480
    else:
        assert_same(found.network, network)
        assert "stem.epsilon=1e-05, stem.epsilon_of=deviation, stem.group_norm_epsilon=1e-06" in found.notes[0]


@pytest.mark.parametrize(
    ("fields", "architecture"),
    [
        (ROOT_ALONE, "vit_tiny_r_s16_p8_224"),
        ({"variant": "R50x1", "resolution": 40}, "resnetv2_50x1_bit.goog_in21k"),
    ],
)
def test_files_of_the_libraries_have_their_epsilons(tmp_path, fields, architecture):
    network = random_network(activation="gelu", **fields) if "variant" not in fields else random_network(**fields)
    for format in ("timm", "hf"):
        path = written(network, format, tmp_path / format)
        config = json.loads((path / "config.json").read_text())
        if format == "timm":
            # Heads are in no table for sizes of one's own.
            config["architecture"] = architecture
        del config["patchline"]
        (path / "config.json").write_text(json.dumps(config))
        found = read_network(path).network
        expected = Network(**{**vars(network), "config": as_computed(network.config)})
        assert_same(found, expected)
    (path / "config.json").unlink()
    heads = Overrides(num_heads=2, activation="gelu") if "variant" not in fields else None
    assert read_network(path, heads).network.state.keys() == network.state.keys()


@pytest.mark.parametrize("fields", [HYBRID, BIT])
def test_a_body_alone_gets_a_last_layer_of_zeros(tmp_path, fields):
    network = random_network(**fields)
    arrays = google_arrays(network)
    body = {name: value for name, value in arrays.items() if not re.search(r"(^|/)head/", name)}
    found = read_network(save(tmp_path / "body.npz", body), Overrides(class_names=("a", "b")))
    assert any("no last layer" in note for note in found.notes)
    assert found.network.state["head.weight"].shape == (2, network.config.features)
    assert not found.network.state["head.weight"].any()


@pytest.mark.parametrize(
    ("format", "fields", "message"),
    [
        ("timm", HYBRID, r"timm has no hybrid whose ResNet has blocks=\[1, 2\], width_factor=1: it has \[\], \[2, 2,"),
        ("timm", {**ROOT_ALONE, "stem": {"width_factor": 2}}, r"blocks=\[\], width_factor=2: it has"),
        ("timm", BIT, r"timm has no R\[1, 1, 2, 1\]x1: it has R50x1, R50x3, R101x1, R101x3, R152x2, R152x4; npz, hf"),
        ("hf", {**HYBRID, "pool": "average"}, "hf has no place for the mean over tokens"),
        ("timm", {**ROOT_ALONE, "layer_norm_epsilon": 1e-3}, "timm has no place for layer_norm_epsilon=0.001"),
    ],
)
def test_what_a_library_has_no_network_for_is_refused(format, fields, message):
    with pytest.raises(UserError, match=message):
        fitted(random_network(**fields), format, drop=True)


@functools.cache
def arrays_of(fields):
    return google_arrays(random_network(**json.loads(fields)))


def changed(arrays, **own):
    return {**{name: value for name, value in arrays.items() if name not in own},
            **{name: value for name, value in own.items() if value is not None}}  # fmt: skip


ROOT = "resnet/root_block/standardized_conv2d/kernel"
UNIT = "resnet/block1/unit01/a"


@pytest.mark.parametrize(
    ("fields", "own", "message"),
    [
        (HYBRID, {"conv_root/kernel": (7, 7, 3, 65)}, "conv_root/kernel has shape (7, 7, 3, 65), expected a multipl"),
        (HYBRID, {"conv_root/kernel": (7, 7, 3)}, "conv_root/kernel has shape (7, 7, 3), expected 4 axes"),
        (HYBRID, {"conv_root/kernel": None}, "no Vision Transformer of ours has gn_root/scale (64,)"),
        (HYBRID, {"embedding/kernel": (1, 1, 3, 16)}, "embedding/kernel has shape (1, 1, 3, 16), expected (1, 1, 51"),
        (HYBRID, {"block2/unit2/conv3/kernel": None}, "has no array block2/unit2/conv3/kernel, expected one of shap"),
        (HYBRID, {"gn_root/bias": np.full(64, np.nan, np.float32)}, "gn_root/bias of shape (64,) has 64 values that"),
        (HYBRID, {"block7/unit1/conv1/kernel": (1, 1, 8, 8)}, "no Vision Transformer of ours has block7/unit1/conv1"),
        (HYBRID, {f"block{i}/unit1/conv1/kernel": (1, 1, 8, 8) for i in range(3, 9)}, "stem.blocks: Tuple should ha"),
        (HYBRID, {f"block1/unit{i}/a": (2,) for i in range(2000)}, "has 2002 bottlenecks, expected up to 1000"),
        (BIT, {ROOT: (7, 7, 3, 66)}, f"{ROOT} has shape (7, 7, 3, 66), expected a multiple of 64 kernels"),
        (BIT, {ROOT: None}, "expected one array embedding/kernel"),
        (BIT, {"params/" + ROOT: (7, 7, 3, 64)}, f"found {ROOT}, params/{ROOT}"),
        (BIT, {f"{UNIT}/standardized_conv2d_1/kernel": (1, 1, 64, 64)}, f"are both {UNIT}/standardized_conv2d/kernel"),
        (BIT, {"resnet/head/conv2d/kernel": (2048, 7)}, "resnet/head/conv2d/kernel has shape (2048, 7), expected (1"),
        (BIT, {f"{UNIT}/group_norm/gamma": None}, f"has no array {UNIT}/group_norm/gamma, expected one of shape (64,)"),
        (BIT, {"resnet/group_norm/beta": np.full(2048, np.inf, np.float32)}, "resnet/group_norm/beta of shape (2048"),
        (BIT, {"resnet/extra": (3,)}, "no ResNet of ours has resnet/extra (3,)"),
        (BIT, {"resnet/block5/unit01/a/x": (3,)}, "has units in 5 stages, expected 4"),
    ],
)  # fmt: skip
def test_an_archive_that_is_no_network_says_which_array(tmp_path, fields, own, message):
    arrays = arrays_of(json.dumps(fields))
    made = {name: np.ones(value, np.float32) if isinstance(value, tuple) else value for name, value in own.items()}
    path = save(tmp_path / "bad.npz", changed(arrays, **made))
    with pytest.raises(UserError, match=re.escape(message)) as error:
        read_network(path)
    assert str(error.value).startswith("bad.npz: ")


@pytest.mark.parametrize(
    ("fields", "own", "message"),
    [
        (HYBRID, {"model": {"stem": None}}, "is said to have no ResNet before its patches, and its arrays have one"),
        (HYBRID, {"model": {"stem": {"blocks": [1, 1]}}}, "is said to have stem.blocks=[1, 1], and its arrays have "),
        (HYBRID, {"model": {"stem": {"epsilon_of": "mean"}}}, "stem.epsilon_of: Input should be 'deviation' or 'varia"),
        (HYBRID, {"model": {"stem": 3}}, "stem: got 3, expected a mapping"),
        (BIT, {"model": {"blocks": [1, 1, 1, 1]}}, "is said to have blocks=[1, 1, 1, 1], and its arrays have (1, 1,"),
        (BIT, {"model": {"epsilon": -1}}, "epsilon: Input should be greater than 0"),
        (BIT, {"model": {"width": 16}}, "width: Extra inputs are not permitted"),
        (BIT, {"resolution": "big"}, "resolution: got 'big', expected a number of pixels"),
        ({}, {"model": {"stem": {"blocks": [1]}}}, "is said to have a ResNet before its patches, and its arrays hav"),
    ],
)  # fmt: skip
def test_settings_that_contradict_the_arrays_are_refused(tmp_path, fields, own, message):
    path = written(random_network(**fields), "npz", tmp_path)
    said = json.loads(path.with_suffix(".json").read_text())
    model = {**said["model"], **own.get("model", {})}
    if isinstance(model.get("stem"), dict):
        model["stem"] = {**(said["model"]["stem"] or {}), **model["stem"]}
    path.with_suffix(".json").write_text(json.dumps({**said, **own, "model": model}))
    with pytest.raises(UserError, match=re.escape(message)):
        read_network(path)


@pytest.mark.parametrize("fields", [HYBRID, BIT])
def test_an_archive_that_is_cut_or_damaged_is_refused(tmp_path, fields):
    path = save(tmp_path / "bad.npz", arrays_of(json.dumps(fields)))
    body = path.read_bytes()
    for part in (0.0, 0.1, 0.5, 0.99):
        path.write_bytes(body[: int(part * len(body))])
        with pytest.raises(UserError, match=r"bad\.npz: it is no whole archive of arrays"):
            read_network(path)
    place = len(body) // 2
    path.write_bytes(body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :])
    with pytest.raises(UserError, match=r"bad\.npz: \S+ of shape .* cannot be read: BadZipFile: Bad CRC-32"):
        read_network(path)


def test_fields_of_vision_transformers_are_none_of_a_resnets(tmp_path):
    path = written(random_network(**BIT), "npz", tmp_path)
    with pytest.raises(UserError, match="it is a ResNet, which has no activation, num_heads: leave it out"):
        read_network(path, Overrides(num_heads=2, activation="gelu"))


@pytest.mark.parametrize(
    ("fields", "own", "message"),
    [
        (BIT, {"layer_type": "bottleneck"}, "config.json: layer_type: got 'bottleneck', expected 'preactivation'"),
        (BIT, {"num_groups": 16}, "config.json: num_groups: got 16, expected 32"),
        (BIT, {"global_padding": "same"}, "config.json: global_padding: got 'same', expected None"),
        (BIT, {"model_type": "vit"}, "model_type: got 'vit', and the arrays are those of 'bit'"),
        (BIT, {"depths": [1, 1, 1, 1]}, "is said to have blocks=[1, 1, 1, 1], and its arrays have (1, 1, 2, 1)"),
        (HYBRID, {"model_type": "vit"}, "is said to have no ResNet before its patches, and its arrays have one"),
        (HYBRID, {"backbone_config": 3}, "backbone_config: got 3, expected a mapping"),
        (HYBRID, {"backbone_config": {}}, "backbone_config: layer_type: got 'preactivation', expected 'bottleneck'"),
        (HYBRID, {"backbone_config": {"model_type": "resnet"}}, "backbone_config: model_type: got 'resnet', expecte"),
        (HYBRID, {"backbone_config": None}, "is said to have stem.blocks=(3, 4, 9), and its arrays have (1, 2)"),
    ],
)  # fmt: skip
def test_hugging_faces_settings_are_believed_or_refused(tmp_path, fields, own, message):
    path = written(random_network(**fields), "hf", tmp_path)
    config = json.loads((path / "config.json").read_text())
    del config["patchline"]
    (path / "config.json").write_text(json.dumps({**config, **own}))
    with pytest.raises(UserError, match=re.escape(message)):
        read_network(path)


def test_timms_settings_are_believed_or_refused(tmp_path):
    path = written(random_network(variant="R50x1", resolution=40), "timm", tmp_path)
    config = json.loads((path / "config.json").read_text())
    del config["patchline"]
    for own, message in (
        ({"architecture": "resnetv2_50d_gn"}, "resnetv2_50d_gn: that is another network than a BiT ResNet of ours"),
        ({"model_args": {"global_pool": "max"}}, "global_pool=max: that is another network"),
        ({"model_args": {"avg_down": True}}, "avg_down: that is another network"),
        ({"model_args": {"in_chans": 1}}, "is said to have in_channels=1, and its arrays have 3"),
    ):
        (path / "config.json").write_text(json.dumps({**config, **own}))
        with pytest.raises(UserError, match=re.escape(message)):
            read_network(path)


@pytest.mark.parametrize(("format", "fields"), [("timm", ROOT_ALONE), ("hf", HYBRID), ("hf", BIT)])
def test_a_file_of_safetensors_says_which_array(tmp_path, format, fields):
    path = written(random_network(**fields), format, tmp_path) / "model.safetensors"
    state = safetensors.torch.load_file(path)
    norm = next(name for name in state if "norm" in name)
    for name, value, message in (
        (next(name for name in state if "conv" in name), torch.ones(3), "has shape (3,), expected 4 axes"),
        (norm, torch.ones(9), "has shape (9,), expected ("),
        (norm, torch.full_like(state[norm], torch.nan), f"has {len(state[norm])} values that are NaN"),
        ("running_mean", torch.ones(3), "of ours has running_mean (3,)"),
    ):
        safetensors.torch.save_file({**state, name: value}, path)
        with pytest.raises(UserError, match=re.escape(message)) as error:
            read_network(path.parent)
        assert name in str(error.value)
    body = path.read_bytes()
    path.write_bytes(body[: len(body) // 2])
    with pytest.raises(UserError, match="no whole file of safetensors"):
        read_network(path.parent)
