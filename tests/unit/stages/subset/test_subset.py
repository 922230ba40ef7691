import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from cluster.errors import UserError
from cluster.storage import open_storage
from stages.context import Context
from stages.data.config import DataConfig
from stages.data.loader import TrainLoader
from stages.data.manifest import dataset_meta
from stages.data.shards import ShardWriter
from stages.ingest.config import DigitsSource, IngestConfig, WebDatasetSource
from stages.ingest.run import run as ingest
from stages.mixture.config import MixtureConfig
from stages.mixture.run import run as mix
from stages.subset.choice import kept_of, thresholds
from stages.subset.config import SubsetConfig
from stages.subset.run import run
from tests.unit.stages.shards import index, shards


def context(storage, folder, attempt=1, tasks=lambda function, items, label: map(function, items)):
    return Context(storage=storage, folder=folder, attempt=attempt, seed=4, tasks=tasks, gang=None)


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    return open_storage(f"file://{tmp_path_factory.mktemp('storage')}")


@pytest.fixture(scope="module")
def digits(storage):
    return ingest(IngestConfig(source=DigitsSource(), samples_per_shard=200), {}, context(storage, "digits")).output


def subset(storage, data, *without, folder="subset", attempt=1, **fields):
    names = tuple(f"other{number}" for number in range(len(without)))
    inputs = {"data": data, **{f"without.{number}": output for number, output in enumerate(without)}}
    return run(SubsetConfig(data="data", without=names, **fields), inputs, context(storage, folder, attempt))


def kept(storage, output, split="train"):
    """Every sample of a split by its tar and place, with its label."""
    found = {}
    for number, shard in enumerate(shards(storage, output, split)):
        own = index(storage, output, number, split)
        places = zip(own.offsets.tolist(), own.labels.tolist(), strict=True)
        found |= {(shard.tar.sha256, offset): label for offset, label in places}
    return found


@given(st.integers(0, 3000), st.floats(0.001, 1), st.floats(0.001, 1))
def test_more_is_kept_of_a_larger_fraction_and_one_at_least(count, one, other):
    small, large = sorted((one, other))
    assert kept_of(count, small, None) <= kept_of(count, large, None) <= count
    assert bool(kept_of(count, small, None)) == bool(count)
    assert abs(kept_of(count, large, None) - large * count) <= 1


@given(st.lists(st.integers(0, 4), min_size=1, max_size=200), st.floats(0.01, 1), st.integers(0, 2**32))
@settings(max_examples=50)
def test_exactly_so_many_of_each_class_have_hashes_up_to_the_threshold(labels, fraction, seed):
    hashes = np.random.default_rng(seed).random(len(labels))
    own = np.array(labels, dtype=np.int32)
    limits = thresholds(hashes, own, 5, fraction, None)
    found = np.bincount(own[hashes <= limits[own]], minlength=5)
    assert found.tolist() == [kept_of(int((own == label).sum()), fraction, None) for label in range(5)]


def test_smaller_parts_lie_in_larger_ones_with_their_share_of_each_class(storage, digits):
    whole, before = kept(storage, digits), dict(kept(storage, digits))
    for fraction in (0.5, 0.1, 0.02):
        output = subset(storage, digits, fraction=fraction, folder=f"part-{fraction}").output
        part = kept(storage, output)
        assert part.items() <= before.items()
        counts = np.bincount(list(whole.values()), minlength=10)
        expected = [kept_of(int(count), fraction, None) for count in counts]
        assert np.bincount(list(part.values()), minlength=10).tolist() == expected
        assert dataset_meta(output).split("train").class_counts == tuple(expected)
        before = part


def test_a_part_of_a_part_is_the_smaller_part(storage, digits):
    half = subset(storage, digits, fraction=0.5, folder="half").output
    again = subset(storage, half, per_class=20, folder="half-20").output
    assert kept(storage, again) == kept(storage, subset(storage, digits, per_class=20, folder="20").output)


def test_other_splits_stay_whole_and_no_image_is_copied(storage, digits):
    output = subset(storage, digits, fraction=0.1, folder="view").output
    assert kept(storage, output, "test") == kept(storage, digits, "test")
    assert not [key for key in storage.list("view") if key.endswith(".tar")]
    again = subset(storage, digits, fraction=0.1, folder="view", attempt=2).output
    assert again.digest == output.digest


def test_a_loader_reads_a_part(storage, digits, tmp_path):
    output = subset(storage, digits, per_class=6, folder="six").output
    with TrainLoader(
        storage,
        output,
        ("train",),
        DataConfig(cache=str(tmp_path / "cache")),
        resolution=8,
        seed=0,
        global_batch=60,
        rank=0,
        world_size=1,
        start=0,
        classes=range(10),
    ) as loader:
        assert np.bincount(next(loader).labels.numpy()).tolist() == [6] * 10


def photographs(count, seed=0):
    """Different 96 × 96 pieces of the photographs that scikit-learn ships."""
    from sklearn.datasets import load_sample_images

    whole = [Image.fromarray(np.asarray(image)) for image in load_sample_images().images]
    places = [(left, top) for left in range(0, 540, 100) for top in range(0, 320, 100)]
    found = [image.crop((left, top, left + 96, top + 96)) for image in whole for left, top in places]
    found = [image for image in found if np.asarray(image.convert("L")).std() > 12]
    assert len(found) >= count
    return found[:count]


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tars(storage, tmp_path, name, images, split="train"):
    """A data set of encoded images in two tars, indexed in place."""
    folder = tmp_path / name
    folder.mkdir()
    for number, part in enumerate((range(0, len(images), 2), range(1, len(images), 2))):
        with open(folder / f"{number}.tar", "wb") as file:
            writer = ShardWriter(file)
            for sample in part:
                extension = "png" if images[sample][:4] == b"\x89PNG" else "jpg"
                writer.add(f"{sample:04d}", extension, images[sample], [sample % 3])
            writer.close()
    config = IngestConfig(source=WebDatasetSource(shards={split: str(folder)}))
    return ingest(config, {}, context(storage, f"{tmp_path.name}-{name}")).output


def removed(storage, result):
    text = storage.read(result.output.key("removed.jsonl")).decode()
    return [json.loads(line) for line in text.splitlines()]


def test_copies_of_evaluation_images_are_left_out_and_told(storage, tmp_path):
    images = photographs(30)
    copies = {
        3: encoded(images[0], "PNG"),
        8: encoded(images[1], "JPEG", quality=50),
        13: encoded(images[2].resize((48, 48), Image.Resampling.LANCZOS), "JPEG", quality=90),
    }
    evaluation = tars(storage, tmp_path, "test", [encoded(image) for image in images[:10]], "test")
    train = [copies.get(number, encoded(image, "JPEG", quality=95)) for number, image in enumerate(images[10:])]
    data = tars(storage, tmp_path, "train", train)
    result = subset(storage, data, evaluation, folder=f"{tmp_path.name}-clean")
    lines = removed(storage, result)
    assert [(line["reason"], line["copy_of"]) for line in lines] == [
        ("near", "other0/test-000001:0"),
        ("equal pixels", "other0/test-000000:0"),
        ("near", "other0/test-000000:1"),
    ]
    by_place = {(line["shard"].rpartition("/")[2], line["index"]) for line in lines}
    assert by_place == {("0.tar", 4), ("1.tar", 1), ("1.tar", 6)}
    assert result.metrics == {"images": 20, "equal": 1, "near": 2, "kept": 17, "unreadable": 0}
    gone = {
        (shard.tar.sha256, line["offset"])
        for line in lines
        for shard in shards(storage, data, "train")
        if shard.tar.address == line["shard"]
    }
    assert kept(storage, result.output).keys() == kept(storage, data).keys() - gone
    exact = subset(storage, data, evaluation, folder=f"{tmp_path.name}-exact", near=None)
    assert [line["reason"] for line in removed(storage, exact)] == ["equal pixels"]


def test_flat_images_are_copies_only_where_their_pixels_are(storage, tmp_path):
    white = [Image.new("RGB", (40, 40), (255, 255, 255 - number)) for number in range(6)]
    evaluation = tars(storage, tmp_path, "test", [encoded(image) for image in white[:2]], "test")
    data = tars(storage, tmp_path, "train", [encoded(image) for image in white])
    result = subset(storage, data, evaluation, folder=f"{tmp_path.name}-flat")
    assert {line["reason"] for line in removed(storage, result)} == {"equal pixels"}
    assert (result.metrics["equal"], result.metrics["near"], result.metrics["kept"]) == (2, 0, 4)


def test_images_that_cannot_be_decoded_are_kept_and_counted(storage, tmp_path):
    images = [encoded(image) for image in photographs(8)]
    # Header and end are whole, so that ingestion takes it; the pixels are not.
    for number in (1, 5):
        images[number] = images[number][:200] + bytes(50) + images[number][250:]
    evaluation = tars(storage, tmp_path, "test", images[4:], "test")
    data = tars(storage, tmp_path, "train", images[:4])
    result = subset(storage, data, evaluation, folder=f"{tmp_path.name}-bad")
    assert result.metrics == {"images": 4, "equal": 0, "near": 0, "kept": 4, "unreadable": 1}


def test_after_a_kill_only_the_missing_parts_are_made(storage, tmp_path):
    images = [encoded(image) for image in photographs(12)]
    evaluation = tars(storage, tmp_path, "test", images[:4], "test")
    data = tars(storage, tmp_path, "train", images)
    config, inputs = SubsetConfig(data="data", without=("other0",)), {"data": data, "without.0": evaluation}
    folder = f"{tmp_path.name}-killed"

    def killed(function, items, *, label):
        for item in items:
            yield function(item)
            if label == "copies":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, inputs, context(storage, folder, tasks=killed))
    before = {key: storage.stat(key).tag for key in storage.list(f"{folder}/") if "/attempts/" not in key}
    assert sum("/parts/" in key for key in before) == 1
    result = run(config, inputs, context(storage, folder, attempt=2))
    after = {key: storage.stat(key).tag for key in storage.list(f"{folder}/") if "/parts/" in key}
    assert len(after) == 2
    assert all(after[key] == tag for key, tag in before.items() if "/parts/" in key)
    assert result.output.digest == subset(storage, data, evaluation, folder=f"{tmp_path.name}-whole").output.digest


def test_a_mixture_keeps_its_shares(storage, digits, tmp_path):
    images = [encoded(image) for image in photographs(30)]
    photos = tars(storage, tmp_path, "photos", images)
    config = MixtureConfig(data=("a", "b"), weights=(1, 1))
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
        ({"without": ("data",)}, "would leave nothing of itself"),
        ({"fraction": 0.5, "near": 17}, "less than or equal to 16"),
    ],
)
def test_settings_that_say_nothing_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        SubsetConfig(data="data", **fields)


def test_mistakes_are_told(storage, digits, tmp_path):
    with pytest.raises(UserError, match="has no split 'val'"):
        subset(storage, digits, fraction=0.5, splits=("val",))
    photos = tars(storage, tmp_path, "photos", [encoded(image) for image in photographs(4)])
    with pytest.raises(UserError, match=r"of other0 has none of without_splits=.*it has train"):
        subset(storage, digits, photos, folder=f"{tmp_path.name}-none")
    with pytest.raises(UserError, match="nothing is left of it"):
        subset(storage, photos, photos, without_splits=("train",), folder=f"{tmp_path.name}-empty")
