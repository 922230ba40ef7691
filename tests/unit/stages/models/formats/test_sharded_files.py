"""Checkpoints in several files, with the index that says which has what."""

import json
import re

import pytest
import safetensors.torch

from cluster.errors import UserError
from cluster.storage import open_storage
from stages.importing.files import digest, fetch, locate, weights_digest
from stages.models.formats import shard_index
from stages.models.formats.beside import Overrides
from stages.models.formats.files import read_network
from stages.models.formats.shard_index import INDEX
from tests.unit.stages.models.formats.networks import assert_same, random_network, written

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def folder(tmp_path):
    """A folder as transformers writes it of a large network: `model.safetensors` in two, and their index."""
    return in_two(written(random_network(), "hf", tmp_path / "vit"))


def in_two(folder):
    state = safetensors.torch.load_file(folder / "model.safetensors")
    names = sorted(state)
    parts = dict(zip(SHARDS, (names[: len(names) // 2], names[len(names) // 2 :]), strict=True))
    for file, own in parts.items():
        safetensors.torch.save_file({name: state[name] for name in own}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    write_index(folder, {name: file for file, own in parts.items() for name in own})
    return folder


def write_index(folder, places):
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))


def places_of(folder):
    return json.loads((folder / INDEX).read_text())["weight_map"]


@pytest.mark.parametrize("format", ["hf", "timm"])
def test_a_network_in_several_files_is_the_same(tmp_path, format):
    network = random_network()
    folder = in_two(written(network, format, tmp_path / "net"))
    found = read_network(folder)
    assert found.format == format
    assert_same(found.network, network)
    (folder / "config.json").unlink()
    assert read_network(folder, Overrides(num_heads=2)).format == format


def test_a_folder_is_known_by_all_its_files_and_all_are_fetched(folder, tmp_path):
    (tmp_path / "there").mkdir()
    place = fetch(f"file://{folder}", tmp_path / "there")
    assert {file.name for file in place.iterdir()} == {*SHARDS, INDEX, "config.json", "preprocessor_config.json"}
    assert_same(read_network(place).network, random_network())
    before, weights = digest(str(folder)), weights_digest(folder / INDEX)
    other = random_network().state["pos_embed"] + 1
    name = "vit.embeddings.position_embeddings"
    shard = folder / places_of(folder)[name]
    safetensors.torch.save_file({**safetensors.torch.load_file(shard), name: other}, shard)
    assert digest(str(folder)) != before
    assert weights_digest(folder / INDEX) != weights
    shard.unlink()
    with pytest.raises(UserError, match=f"there is no {re.escape(shard.name)}"):
        digest(str(folder))
    (tmp_path / "again").mkdir()
    with pytest.raises(UserError, match=f"there is no {re.escape(shard.name)}"):
        fetch(str(folder), tmp_path / "again")


def test_one_file_goes_before_an_index(folder):
    written(random_network(depth=1), "hf", folder)
    assert read_network(folder).network.config.depth == 1
    assert locate(str(folder)).needed == ("model.safetensors",)


def test_a_file_that_is_missing_or_has_what_another_has_is_named(folder):
    first, second = (safetensors.torch.load_file(folder / file) for file in SHARDS)
    name = sorted(first)[0]
    safetensors.torch.save_file({**second, name: first[name]}, folder / SHARDS[1])
    with pytest.raises(UserError, match=f"{re.escape(name)} is in {SHARDS[0]} and in {SHARDS[1]}"):
        read_network(folder)
    safetensors.torch.save_file({**second, "more": first[name]}, folder / SHARDS[1])
    with pytest.raises(UserError, match="does not name more, which its files have"):
        read_network(folder)
    safetensors.torch.save_file(second, folder / SHARDS[1])
    right = places_of(folder)
    write_index(folder, {**right, name: SHARDS[1]})
    with pytest.raises(UserError, match=f"{re.escape(name)} is said to be in {SHARDS[1]}: it is in {SHARDS[0]}"):
        read_network(folder)
    write_index(folder, {**right, "vit.gone": SHARDS[1]})
    with pytest.raises(UserError, match=rf"vit\.gone is said to be in {SHARDS[1]}: it is not there"):
        read_network(folder)
    write_index(folder, right)
    (folder / SHARDS[1]).write_bytes((folder / SHARDS[1]).read_bytes()[:-9])
    with pytest.raises(UserError, match=f"{SHARDS[1]}: it is no whole file of safetensors"):
        read_network(folder)
    (folder / SHARDS[1]).unlink()
    with pytest.raises(UserError, match=rf"{re.escape(INDEX)}: {SHARDS[1]}, which it names, is not there"):
        read_network(folder)


@pytest.mark.parametrize(
    "place",
    ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "x.bin", "s3://b/x.safetensors", "", 3, None,
     ".hidden.safetensors", "a\\b.safetensors", "a\n.safetensors"],
)  # fmt: skip
def test_an_index_names_files_of_its_own_folder_alone(folder, tmp_path, place):
    write_index(folder, {**places_of(folder), "vit.layernorm.bias": place})
    message = rf"vit\.layernorm\.bias is said to be in {re.escape(repr(place))}: expected a \.safetensors of the same"
    with pytest.raises(UserError, match=message):
        read_network(folder)
    with pytest.raises(UserError, match=message):
        fetch(str(folder), tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[]", "expected a mapping weight_map"),
        ('{"weight_map": {}}', "expected a mapping weight_map"),
        ('{"weight_map": ["a"]}', "expected a mapping weight_map"),
        (json.dumps({"weight_map": {f"a{i}": f"m{i}.safetensors" for i in range(1001)}}), "names 1,001 files"),
    ],
)  # fmt: skip
def test_an_index_that_is_none_is_refused(folder, text, message):
    (folder / INDEX).write_text(text)
    with pytest.raises(UserError, match=f"{re.escape(INDEX)}: {message}"):
        read_network(folder)
    with pytest.raises(UserError, match=f"{re.escape(INDEX)}: {message}"):
        digest(str(folder))


def test_an_index_may_not_be_as_large_as_it_likes(folder, monkeypatch):
    monkeypatch.setattr(shard_index, "MOST_BYTES", 100)
    with pytest.raises(UserError, match="bytes, expected up to 100"):
        read_network(folder)


def test_a_folder_in_any_storage_has_an_index_too(folder):
    storage = open_storage(f"file://{folder}")
    assert storage.stat(INDEX) is not None
    assert locate(f"file://{folder}").needed == (INDEX, *SHARDS)
