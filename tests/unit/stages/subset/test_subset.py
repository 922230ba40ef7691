import numpy as np
import pytest
from pydantic import ValidationError

from cluster.errors import UserError
from cluster.storage import open_storage
from stages.data.cache import CorruptShard
from stages.data.config import DataConfig
from stages.data.loader import TrainLoader
from stages.data.manifest import dataset_meta
from stages.ingest.config import DigitsSource, IngestConfig
from stages.ingest.run import run as ingest
from stages.mixture.config import MixtureConfig
from stages.mixture.run import run as mix
from stages.subset.choice import kept_of
from stages.subset.config import SubsetConfig
from stages.subset.run import run
from tests.unit.stages.shards import shards
from tests.unit.stages.subset.sets import context, encoded, kept, photographs, subset, tars


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    return open_storage(f"file://{tmp_path_factory.mktemp('storage')}")


@pytest.fixture(scope="module")
def digits(storage):
    config = IngestConfig(source=DigitsSource(), samples_per_shard=200, held_out_classes=2, name="digits")
    return ingest(config, {}, context(storage, "digits")).output


def by_class(samples):
    """Samples of each of ten classes, each with one label."""
    return np.bincount([label for (label,) in samples.values()], minlength=10).tolist()


def test_smaller_parts_lie_in_larger_ones_with_their_share_of_each_class(storage, digits):
    before = whole = kept(storage, digits)
    for fraction in (0.5, 0.1, 0.02):
        output = subset(storage, digits, fraction=fraction, folder=f"part-{fraction}").output
        part = kept(storage, output)
        assert part.items() <= before.items()
        assert by_class(part) == [kept_of(count, fraction, None) for count in by_class(whole)]
        assert list(dataset_meta(output).split("train").class_counts) == by_class(part)
        before = part


def test_a_part_of_a_part_is_the_smaller_part(storage, digits):
    half = subset(storage, digits, fraction=0.5, folder="half").output
    again = subset(storage, half, per_class=20, folder="half-20").output
    assert kept(storage, again) == kept(storage, subset(storage, digits, per_class=20, folder="20").output)


def test_the_seed_says_which(storage, digits):
    config = SubsetConfig(data="data", fraction=0.1)
    one, other = (run(config, {"data": digits}, context(storage, f"seed-{seed}", seed=seed)).output for seed in (1, 2))
    assert by_class(kept(storage, one)) == by_class(kept(storage, other))
    assert kept(storage, one) != kept(storage, other)


def test_other_splits_stay_whole_and_no_image_is_copied(storage, digits):
    output = subset(storage, digits, fraction=0.1, folder="view").output
    before, after = dataset_meta(digits), dataset_meta(output)
    assert (after.classes, after.held_out, after.multi_label) == (before.classes, before.held_out, False)
    assert (after.name, list(after.splits)) == ("digits 10%", list(before.splits))
    for name in set(before.splits) - {"train"}:
        assert kept(storage, output, name) == kept(storage, digits, name)
        assert after.split(name).class_counts == before.split(name).class_counts
    assert not [key for key in storage.list("view/") if key.endswith(".tar")]
    # New indexes are those of the split that is reduced.
    assert {key.rpartition("/")[2][:5] for key in storage.list("view/index/")} == {"train"}


def test_again_it_has_the_same_bytes(storage, digits):
    outputs = [subset(storage, digits, fraction=0.1, folder="again", attempt=attempt).output for attempt in (1, 2)]
    assert outputs[0].digest == outputs[1].digest
    indexes = {key: storage.read(f"again/{key}") for key in ("index/train-000000.safetensors",)}
    subset(storage, digits, fraction=0.1, folder="elsewhere")
    assert all(storage.read(f"elsewhere/{key}") == body for key, body in indexes.items())


def test_a_loader_reads_a_part(storage, digits, tmp_path):
    output = subset(storage, digits, per_class=6, folder="six").output
    with TrainLoader(
        storage,
        output,
        ("train",),
        DataConfig(cache=str(tmp_path / "cache")),
        resolution=8,
        seed=0,
        global_batch=48,
        rank=0,
        world_size=1,
        start=0,
        classes=range(10),
    ) as loader:
        found = np.bincount(next(loader).labels.numpy(), minlength=10).tolist()
    assert found == by_class(kept(storage, output))
    assert sorted(found) == [0, 0, *[6] * 8]


def test_several_splits_are_reduced_each_by_itself(storage, digits):
    output = subset(storage, digits, fraction=0.25, splits=("test", "train"), folder="both").output
    for name in ("train", "test"):
        whole = by_class(kept(storage, digits, name))
        assert by_class(kept(storage, output, name)) == [kept_of(count, 0.25, None) for count in whole]


def test_of_samples_with_several_labels_a_fraction_of_all_is_kept(storage, tmp_path):
    images = [encoded(image) for image in photographs(30)]
    labels = [[0, 1], [2], [0, 1, 2], [1], []] * 6
    data = tars(storage, tmp_path, "several", images, labels=labels)
    before = whole = kept(storage, data)
    for fraction, count in ((0.5, 15), (0.2, 6)):
        output = subset(storage, data, fraction=fraction, folder=f"{tmp_path.name}-{fraction}").output
        part, meta = kept(storage, output), dataset_meta(output)
        assert part.items() <= before.items() <= whole.items()
        assert (len(part), meta.split("train").count, meta.multi_label) == (count, count, True)
        counts = np.bincount([label for own in part.values() for label in own], minlength=3)
        assert meta.split("train").class_counts == tuple(counts)
        before = part
    with pytest.raises(UserError, match="per_class=3: samples of 'webdataset' have several labels; use fraction"):
        subset(storage, data, per_class=3, folder=f"{tmp_path.name}-few")


def test_a_mixture_keeps_its_shares(storage, digits, tmp_path):
    photos = tars(storage, tmp_path, "photos", [encoded(image) for image in photographs(30)])
    config = MixtureConfig(data=("a", "b"), weights=(1, 1), classes="apart")
    both = mix(config, {"data.0": digits, "data.1": photos}, context(storage, f"{tmp_path.name}-both")).output
    meta = dataset_meta(subset(storage, both, per_class=2, folder=f"{tmp_path.name}-few").output)
    parts = meta.split("train").parts
    assert [part.share for part in parts] == [0.5, 0.5]
    assert sum(part.shards for part in parts) == meta.split("train").shards


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "nothing is left out"),
        ({"fraction": 0}, "greater than 0"),
        ({"fraction": 0.5, "per_class": 20}, "give one of fraction and per_class, got 0.5 and 20"),
        (
            {"without": ("data",), "splits": ("train", "test")},
            "'data' itself, and test would leave nothing",
        ),
        ({"fraction": 0.5, "near": 17}, "less than or equal to 16"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        SubsetConfig(data="data", **fields)


def test_mistakes_are_told(storage, digits, tmp_path):
    with pytest.raises(UserError, match="has no split 'val'"):
        subset(storage, digits, fraction=0.5, splits=("val",))
    photos = tars(storage, tmp_path, "photos", [encoded(image) for image in photographs(4)])
    with pytest.raises(UserError, match=r"of other0 has none of without_splits=.*it has train"):
        subset(storage, digits, photos, folder=f"{tmp_path.name}-none")
    with pytest.raises(UserError, match=r"all of its 4 images are in other0; see .*/removed.jsonl") as error:
        subset(storage, photos, photos, without_splits=("train",), folder=f"{tmp_path.name}-empty")
    report = str(error.value).rpartition(f"{storage.url}/")[2]
    assert len(storage.read(report).splitlines()) == 4


def test_an_index_that_is_not_that_of_its_table_is_refused(storage, tmp_path):
    photos = tars(storage, tmp_path, "photos", [encoded(image) for image in photographs(6)])
    index = shards(storage, photos, "train")[1].index.address
    key = f"{tmp_path.name}-photos/{index}"
    storage.write(key, storage.read(key)[:-1] + b"!")
    with pytest.raises(CorruptShard, match=index):
        subset(storage, photos, per_class=1, folder=f"{tmp_path.name}-one")
