from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from cluster.errors import UserError
from cluster.storage import open_storage
from stages.context import Context
from stages.data.config import DataConfig
from stages.data.dataset import open_order
from stages.data.evaluation_loader import evaluation_batches
from stages.data.loader import TrainLoader
from stages.data.manifest import dataset_meta
from stages.ingest.config import DigitsSource, FolderSource, IngestConfig
from stages.ingest.run import run as ingest
from stages.mixture.config import MixtureConfig
from stages.mixture.run import run
from tests.unit.stages.shards import shards


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    return open_storage(f"file://{tmp_path_factory.mktemp('storage')}")


def context(storage, folder):
    return Context(
        storage=storage,
        folder=folder,
        attempt=1,
        seed=3,
        tasks=lambda function, items, label: map(function, items),
        gang=None,
    )


@pytest.fixture(scope="module")
def digits(storage):
    return ingest(IngestConfig(source=DigitsSource(), samples_per_shard=100), {}, context(storage, "digits")).output


@pytest.fixture(scope="module")
def colours(storage, tmp_path_factory):
    """90 flat pictures of the classes 7, blue and red."""
    folder = tmp_path_factory.mktemp("colours")
    for name, colour in {"blue": (0, 0, 255), "red": (255, 0, 0), "7": (7, 7, 7)}.items():
        (folder / name).mkdir()
        for number in range(30):
            Image.new("RGB", (20, 20), colour).save(folder / name / f"{number}.png")
    config = IngestConfig(source=FolderSource(path=str(folder)), samples_per_shard=40, test_fraction=0)
    return ingest(config, {}, context(storage, "colours")).output


def mixed(storage, *outputs, folder="mixture", **config):
    stages = tuple(f"stage{number}" for number in range(len(outputs)))
    inputs = {f"data.{number}": output for number, output in enumerate(outputs)}
    return run(MixtureConfig(data=stages, **config), inputs, context(storage, folder))


def loader(storage, output, tmp_path, **place):
    return TrainLoader(
        storage,
        output,
        ("train",),
        DataConfig(streams=2, window=64, cache=str(tmp_path / "cache")),
        resolution=16,
        seed=1,
        classes=range(len(dataset_meta(output).classes)),
        **{"global_batch": 240, "rank": 0, "world_size": 1, "start": 0, **place},
    )


def test_classes_of_one_name_are_one(storage, digits, colours):
    meta = dataset_meta(mixed(storage, digits, colours).output)
    assert meta.classes == (*(str(digit) for digit in range(10)), "blue", "red")
    own, other = (dataset_meta(output).split("train") for output in (digits, colours))
    found = meta.split("train")
    assert found.count == own.count + other.count
    assert found.class_counts[7] == own.class_counts[7] + other.class_counts[0]
    assert found.class_counts[10:] == other.class_counts[1:]
    assert found.parts == ()


def test_apart_every_data_set_keeps_its_own_classes(storage, digits, colours):
    meta = dataset_meta(mixed(storage, digits, colours, classes="apart").output)
    assert len(meta.classes) == 13
    assert meta.classes[7] == "stage0/7"
    assert meta.classes[10:] == ("stage1/7", "stage1/blue", "stage1/red")


def test_training_reads_the_shares_and_every_image_has_its_own_label(storage, digits, colours, tmp_path):
    result = mixed(storage, digits, colours, weights=(1, 3))
    assert [(row["split"], row["data"], row["share"]) for row in result.tables["mixture"]][:2] == [
        ("train", "stage0", 0.25),
        ("train", "stage1", 0.75),
    ]
    seen = dict.fromkeys(range(12), 0)
    with loader(storage, result.output, tmp_path) as batches:
        for _ in range(10):
            batch = next(batches)
            for image, label in zip(batch.images.numpy(), batch.labels.tolist(), strict=True):
                seen[label] += 1
                colour = image.reshape(-1, 3).mean(axis=0)
                assert (label == 10) == (colour.tolist() == [0, 0, 255])
                assert (label == 11) == (colour.tolist() == [255, 0, 0])
                # No digit is 7 of 255 all over, as the class 7 of the colours is.
                assert label == 7 or not (image == 7).all()
    coloured = seen[10] + seen[11]
    assert 0.45 < coloured / 2400 < 0.55


@pytest.mark.parametrize("world_size", [2, 3, 5, 8])
def test_ranks_together_read_what_one_reads_from_any_place(storage, digits, colours, tmp_path, world_size):
    output = mixed(storage, digits, colours, weights=(1, 3)).output
    with loader(storage, output, tmp_path, start=480) as alone:
        expected = next(alone)
    found = []
    for rank in range(world_size):
        with loader(storage, output, tmp_path, start=480, rank=rank, world_size=world_size) as own:
            found.append(next(own))
    assert np.array_equal(np.concatenate([batch.images for batch in found]), expected.images)
    assert np.array_equal(np.concatenate([batch.labels for batch in found]), expected.labels)


def test_evaluation_reads_every_sample_of_all_data_sets_once(storage, digits, colours, tmp_path):
    output = mixed(storage, digits, colours, weights=(1, 3)).output
    batches = evaluation_batches(
        storage,
        output,
        ["validation"],
        resolution=16,
        batch=64,
        rank=0,
        world_size=1,
        classes=range(12),
        config=DataConfig(cache=str(tmp_path / "cache")),
    )
    labels = np.concatenate([batch.labels[batch.mask] for batch in batches])
    counts = dataset_meta(output).split("validation").class_counts
    assert np.bincount(labels, minlength=12).tolist() == list(counts)
    assert len(labels) == sum(dataset_meta(own).split("validation").count for own in (digits, colours))


def test_no_image_is_copied_and_a_rerun_gives_the_same_bytes(storage, digits, colours):
    first = mixed(storage, digits, colours, folder="once", weights=(1, 3)).output
    again = mixed(storage, digits, colours, folder="once", weights=(1, 3)).output
    assert again.digest == first.digest
    assert not [key for key in storage.list("once") if key.endswith(".tar")]
    tars = {shard.tar.address for shard in shards(storage, first, "train")}
    assert tars == {
        f"{storage.url}/{folder}/{shard.tar.address}"
        for folder, output in (("digits", digits), ("colours", colours))
        for shard in shards(storage, output, "train")
    }


def test_a_mixture_of_a_mixture_multiplies_the_shares(storage, digits, colours):
    inner = mixed(storage, digits, colours, folder="inner", weights=(1, 3)).output
    outer = mixed(storage, inner, colours, folder="outer", weights=(1, 1)).output
    parts = dataset_meta(outer).split("train").parts
    assert [part.share for part in parts] == [0.125, 0.375, 0.5]
    assert sum(part.shards for part in parts) == dataset_meta(outer).split("train").shards
    order = open_order(shards(storage, outer, "train"), outer, ["train"], DataConfig(), 0)
    assert len(order.locate(range(100))[0]) == 100


def test_single_and_several_labels_become_several(storage, digits, colours, tmp_path):
    many = replace(digits, manifest={**digits.manifest, "meta": {**digits.meta, "multi_label": True}})
    output = mixed(storage, colours, many, folder="several").output
    assert dataset_meta(output).multi_label
    with loader(storage, output, tmp_path) as batches:
        assert next(batches).labels.shape == (240, 12)


def test_a_class_that_one_holds_out_and_another_trains_on_is_refused(storage, digits, colours):
    config = IngestConfig(source=DigitsSource(), held_out_classes=10 - 1, validation_fraction=0, test_fraction=0)
    held_out = ingest(config, {}, context(storage, "held-out")).output
    trained = int(np.argmax(dataset_meta(held_out).split("train").class_counts))
    assert trained != 7
    with pytest.raises(UserError, match="class '7' is held out in one data set and trained on in 'folder'"):
        mixed(storage, held_out, colours)
    apart = dataset_meta(mixed(storage, held_out, colours, classes="apart").output)
    assert len(apart.held_out) == 9


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data": ("a",)}, "expected at least two stages"),
        ({"data": ("a", "a")}, "each named once"),
        ({"data": ("a", "b"), "weights": (1,)}, "expected 2 numbers"),
        ({"data": ("a", "b"), "weights": (1, 0)}, "greater than 0"),
    ],
)
def test_settings_that_say_nothing_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        MixtureConfig(**fields)
