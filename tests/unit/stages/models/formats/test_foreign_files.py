"""Files as others write them: Google's in all their layouts, timm's and Hugging Face's without our description."""

import json
import re

import numpy as np
import pytest
import safetensors.torch
import torch

from cluster.errors import UserError
from stages.models.formats.beside import Overrides
from stages.models.formats.files import read_network
from stages.models.formats.google_names import POSITIONS
from tests.unit.stages.models.formats.networks import (
    assert_same,
    google_arrays,
    logits,
    random_network,
    save,
    written,
)

LINEN = {"MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0", "MlpBlock_3": "MlpBlock_0",
         "LayerNorm_2": "LayerNorm_1"}  # fmt: skip


def as_linen(arrays):
    def renamed(name):
        for old, new in LINEN.items():
            name = name.replace(f"/{old}/", f"/{new}/") if "encoderblock" in name else name
        return name

    return {renamed(name): value for name, value in arrays.items()}


def prefixed(arrays, prefix):
    return {f"{prefix}{name}": value for name, value in arrays.items()}


def stacked(arrays):
    """The arrays of all blocks in one, as big_vision's scan makes them."""
    found = {name: value for name, value in arrays.items() if "encoderblock_" not in name}
    depth = 1 + max(int(match[1]) for name in arrays if (match := re.search(r"encoderblock_(\d+)", name)))
    for name in arrays:
        if "encoderblock_0/" in name:
            blocks = [arrays[name.replace("encoderblock_0", f"encoderblock_{i}")] for i in range(depth)]
            found[name.replace("encoderblock_0", "encoderblock")] = np.stack(blocks)
    return found


@pytest.mark.parametrize("prefix", ["", "opt/target/", "params/", "params/img/"])
@pytest.mark.parametrize("naming", [dict, as_linen, lambda arrays: stacked(as_linen(arrays))])
@pytest.mark.parametrize("fields", [{"head": "mlp_tanh"}, {"pool": "average"}, {"pool": "attention"}])
def test_googles_files_are_read_in_every_layout(tmp_path, prefix, naming, fields):
    network = random_network(**fields)
    path = save(tmp_path / "vit.npz", prefixed(naming(google_arrays(network)), prefix))
    found = read_network(path)
    assert_same(found.network, network)
    assert found.notes == (
        "nothing says so, and it is usual for such files: activation=gelu_tanh, layer_norm_epsilon=1e-06",
    )


@pytest.mark.parametrize("pool", ["token", "average"])
def test_big_visions_positions_have_no_row_for_the_class_token(tmp_path, pool):
    network = random_network(pool=pool)
    arrays = as_linen(google_arrays(network))
    positions = arrays.pop(POSITIONS)
    arrays["pos_embedding"] = positions[:, 1:] if pool == "token" else positions
    found = read_network(save(tmp_path / "vit.npz", prefixed(arrays, "params/"))).network
    expected = network.state["pos_embed"].clone()
    if pool == "token":
        expected[:, 0] = 0
    assert torch.equal(found.state["pos_embed"], expected)
    assert found.resolution == 12


def test_bfloat16_comes_as_raw_bytes(tmp_path):
    network = random_network()
    raw = {}
    for name, value in google_arrays(network).items():
        half = torch.from_numpy(value).to(torch.bfloat16)
        raw[name] = half.contiguous().view(torch.int16).numpy().view("V2")
    found = read_network(save(tmp_path / "vit.npz", raw)).network
    for name, value in network.state.items():
        assert torch.equal(found.state[name], value.to(torch.bfloat16).float())


def test_an_optimizers_state_is_left_out_and_any_other_array_is_refused(tmp_path):
    network = random_network()
    arrays = prefixed(google_arrays(network), "opt/target/")
    optimizer = {"opt/state/step": np.float32(3), "opt/state/param_states/head/bias/grad_ema": np.ones(7, np.float32)}
    path = save(tmp_path / "vit.npz", {**arrays, **optimizer})
    found = read_network(path)
    assert_same(found.network, network)
    assert set(found.left_out) == set(optimizer)
    assert found.arrays == len(arrays)
    save(path, {**arrays, **optimizer, "opt/state/else": np.ones(2, np.float32), "txt/w": np.ones(3, np.float32)})
    with pytest.raises(
        UserError, match=r"vit\.npz: no Vision Transformer of ours has opt/state/else \(2,\), txt/w \(3"
    ):
        read_network(path)
    found = read_network(path, Overrides(drop=("txt/*", "opt/state/else")))
    assert {"txt/w", "opt/state/else"} < set(found.left_out)
    with pytest.raises(UserError, match=r"drop=nothing/\*: there is no such array"):
        read_network(path, Overrides(drop=("nothing/*",)))


def test_a_last_layer_of_zeros_is_told(tmp_path):
    arrays = google_arrays(random_network(head="mlp_tanh"))
    zeros = {name: np.zeros_like(value) if name.startswith("head/") else value for name, value in arrays.items()}
    found = read_network(save(tmp_path / "imagenet21k.npz", zeros))
    assert any("last layer is all zeros" in note for note in found.notes)
    body = {name: value for name, value in arrays.items() if not name.startswith("head/")}
    found = read_network(save(tmp_path / "body.npz", body), Overrides(class_names=("a", "b")))
    assert any("no last layer" in note for note in found.notes)
    assert (found.network.num_classes, float(found.network.state["head.weight"].abs().max())) == (2, 0)


def test_groupings_of_sizes_are_recognised_and_the_user_may_say_otherwise(tmp_path):
    network = random_network(variant="Ti/16", resolution=32)
    path = written(network, "npz", tmp_path)
    path.with_suffix(".json").unlink()
    found = read_network(path, Overrides(activation="gelu", layer_norm_epsilon=1e-5)).network
    assert (found.config.variant, found.config.num_heads, found.config.activation) == ("Ti", 3, "gelu")
    assert found.config.layer_norm_epsilon == 1e-5


def timm_file(network, folder, config=None):
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(network.state, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_timms_files_have_the_exact_gelu_and_heads_by_table_or_by_hand(tmp_path):
    network = random_network(variant="Ti/16", resolution=32, activation="gelu")
    folder = timm_file(network, tmp_path / "a", {"architecture": "vit_tiny_patch16_224", "num_classes": 7})
    found = read_network(folder)
    assert_same(found.network, network)
    assert "activation=gelu, layer_norm_epsilon=1e-06" in found.notes[0]
    # The file alone, under any name.
    alone = (folder / "model.safetensors").rename(tmp_path / "vit_tiny.safetensors")
    assert_same(read_network(alone).network, network)
    small = timm_file(random_network(activation="gelu"), tmp_path / "b")
    with pytest.raises(UserError, match=r"width=16, depth=2, mlp_dim=32 is none of Ti, .*: say it with num_heads"):
        read_network(small)
    assert_same(read_network(small, Overrides(num_heads=2)).network, random_network(activation="gelu"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reg_tokens": 4}, "reg_tokens: that is another network"),
        ({"fc_norm": True}, "fc_norm: that is another network"),
        ({"act_layer": "relu"}, "act_layer: got 'relu', expected one of gelu, gelu_tanh"),
        ({"global_pool": "avg"}, "is said to have pool=average, and its arrays have token"),
        ({"depth": 3}, "is said to have depth=3, and its arrays have 2"),
        ({"img_size": 16}, "is said to be for 16 pixels, and its position embeddings are for 12"),
        ({"num_heads": 3}, "width=16 is not a multiple of num_heads=3"),
    ],
)
def test_timms_settings_are_believed_or_refused(tmp_path, arguments, message):
    settings = {"architecture": "vit_tiny_patch16_224", "model_args": {"num_heads": 2, **arguments}}
    with pytest.raises(UserError, match=re.escape(message)):
        read_network(timm_file(random_network(), tmp_path / "a", settings))


def test_timms_networks_may_have_no_position_embedding_for_the_class_token(tmp_path):
    network = random_network(activation="gelu")
    network.state["pos_embed"][:, 0] = 0
    shorter = {**network.state, "pos_embed": network.state["pos_embed"][:, 1:].contiguous()}
    (tmp_path / "a").mkdir()
    safetensors.torch.save_file(shorter, tmp_path / "a" / "model.safetensors")
    found = read_network(tmp_path / "a", Overrides(num_heads=2)).network
    assert_same(found, network)


def hf_folder(network, folder, **changed):
    path = written(network, "hf", folder)
    config = json.loads((path / "config.json").read_text())
    del config["patchline"]
    (path / "config.json").write_text(json.dumps({**config, **changed}))
    return path


def test_hugging_faces_settings_say_what_there_is(tmp_path):
    network = random_network(activation="gelu_tanh", layer_norm_epsilon=1e-12)
    found = read_network(hf_folder(network, tmp_path / "a"))
    assert_same(found.network, network)
    assert (found.notes, found.network.classes) == ((), None)
    named = hf_folder(network, tmp_path / "b", id2label={str(number): f"class {number}" for number in range(7)})
    assert read_network(named).network.classes == tuple(f"class {number}" for number in range(7))
    for changed, message in (
        ({"hidden_act": "relu"}, "hidden_act: got 'relu', expected one of gelu"),
        ({"model_type": "deit"}, "model_type: got 'deit', expected 'vit'"),
        ({"qkv_bias": False}, "qkv_bias: got False, expected true"),
        ({"num_hidden_layers": 12}, "is said to have depth=12, and its arrays have 2"),
        ({"image_size": 16}, "is said to be for 16 pixels"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            read_network(hf_folder(network, tmp_path / "c", **changed))


def test_hugging_faces_body_alone_has_a_pooler_and_no_last_layer(tmp_path):
    network = random_network(activation="gelu", head="mlp_tanh")
    path = hf_folder(random_network(activation="gelu"), tmp_path / "a")
    from stages.models.formats.hugging_face_names import rules
    from stages.models.formats.rules import outward

    arrays = outward(rules(network.config, head=False), network.state, 2)
    shortened = {name.removeprefix("vit."): value for name, value in arrays.items()}
    safetensors.torch.save_file(shortened, path / "model.safetensors")
    found = read_network(path)
    assert found.network.config.head == "mlp_tanh"
    assert torch.equal(found.network.state["pre_logits.fc.weight"], network.state["pre_logits.fc.weight"])
    assert any("no last layer" in note for note in found.notes)
    assert logits(found.network).shape == (2, 1)
