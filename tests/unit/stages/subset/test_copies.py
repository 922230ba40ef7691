import json

import pytest
from PIL import Image, ImageEnhance

from cluster.storage import open_storage
from stages.data.manifest import dataset_meta
from stages.ingest.config import DigitsSource, IngestConfig
from stages.ingest.run import run as ingest
from stages.subset.config import SubsetConfig
from stages.subset.run import run
from tests.bench.dedup import digits
from tests.unit.stages.shards import samples, shards
from tests.unit.stages.subset.sets import context, encoded, kept, photographs, subset, tars


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    return open_storage(f"file://{tmp_path_factory.mktemp('storage')}")


def lines(storage, result, name="removed.jsonl"):
    return [json.loads(line) for line in storage.read(result.output.key(name)).decode().splitlines()]


def places(storage, output, split):
    """Every sample of a data set from `tars` by its number among the images: address of the tar, index and offset."""
    found = {}
    for parity, shard in enumerate(shards(storage, output, split)):
        offsets = sorted(offset for sha256, offset in kept(storage, output, split) if sha256 == shard.tar.sha256)
        for index, offset in enumerate(offsets):
            found[2 * index + parity] = {"shard": shard.tar.address, "index": index, "offset": offset}
    return found


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
    own, other = places(storage, data, "train"), places(storage, evaluation, "test")
    told = lines(storage, result)
    distances = [line.pop("distance") for line in told]
    assert told == [
        {
            "split": "train",
            **own[copy],
            "reason": reason,
            "copy_of": {"stage": "other0", "data": "webdataset", "split": "test", **other[original]},
        }
        for copy, reason, original in ((8, "near", 1), (3, "exact", 0), (13, "near", 2))
    ]
    assert distances[1] is None
    assert all(0 <= distance <= 6 for distance in (distances[0], distances[2]))
    assert result.metrics == {
        "images": 20, "removed_exact": 1, "removed_near": 2, "unreadable": 0, "kept": 17, "unreadable_others": 0
    }  # fmt: skip
    assert dataset_meta(result.output).name == "webdataset deduplicated"
    gone = {own[number]["offset"] for number in copies}
    assert len(gone) == 3
    left = kept(storage, result.output)
    assert left.items() < kept(storage, data).items()
    assert [place for place in kept(storage, data) if place not in left and place[1] not in gone] == []
    exact = subset(storage, data, evaluation, folder=f"{tmp_path.name}-exact", near=None)
    assert [line["reason"] for line in lines(storage, exact)] == ["exact"]


def test_of_tiny_pictures_of_one_kind_only_the_copies_are_taken_for_copies(storage, tmp_path):
    pictures = digits()
    evaluation = tars(storage, tmp_path, "test", [encoded(image) for image in pictures[:100]], "test")
    copies = [
        encoded(pictures[0]),
        encoded(pictures[1], "JPEG", quality=95),
        encoded(ImageEnhance.Brightness(pictures[2]).enhance(1.05)),
        encoded(ImageEnhance.Brightness(pictures[3]).enhance(1.05), "JPEG", quality=98),
    ]
    data = tars(storage, tmp_path, "train", [*copies, *(encoded(image) for image in pictures[100:600])])
    told = lines(storage, subset(storage, data, evaluation, folder=f"{tmp_path.name}-clean"))
    own, other = places(storage, data, "train"), places(storage, evaluation, "test")
    found = {(line["shard"], line["index"]): line["copy_of"]["offset"] for line in told}
    assert found == {(own[n]["shard"], own[n]["index"]): other[n]["offset"] for n in range(4)}
    assert sorted(line["reason"] for line in told) == ["exact", "near", "near", "near"]


def test_training_images_that_are_in_a_data_sets_own_test_split_are_found(storage):
    output = ingest(IngestConfig(source=DigitsSource()), {}, context(storage, "digits")).output
    test = {picture["png"] for picture in samples(storage, output, "test")}
    train = [picture["png"] for picture in samples(storage, output, "train")]
    config = SubsetConfig(data="data", without=("data",), near=None)
    result = run(config, {"data": output, "without.0": output}, context(storage, "own"))
    assert result.metrics["images"] == len(train)
    assert result.metrics["removed_exact"] == sum(picture in test for picture in train)
    every = SubsetConfig(data="data", without=("data",), without_splits=("train",), splits=("test",), near=None)
    again = run(every, {"data": result.output, "without.0": result.output}, context(storage, "own-again"))
    assert again.metrics["removed_exact"] == 0


def test_the_fraction_is_one_of_what_remains(storage, tmp_path):
    images = [encoded(image) for image in photographs(30)]
    evaluation = tars(storage, tmp_path, "test", images[:12], "test")
    data = tars(storage, tmp_path, "train", images)
    clean = subset(storage, data, evaluation, folder=f"{tmp_path.name}-clean").output
    assert len(kept(storage, clean)) == 18
    at_once = subset(storage, data, evaluation, fraction=0.5, folder=f"{tmp_path.name}-once").output
    after = subset(storage, clean, fraction=0.5, folder=f"{tmp_path.name}-after").output
    assert len(kept(storage, after)) == 9
    assert kept(storage, at_once) == kept(storage, after)
    assert dataset_meta(at_once).name == "webdataset deduplicated 50%"


def test_a_shard_without_copies_keeps_its_index(storage, tmp_path):
    images = [encoded(image) for image in photographs(12)]
    evaluation = tars(storage, tmp_path, "test", images[:1], "test")
    data = tars(storage, tmp_path, "train", images)
    clean = subset(storage, data, evaluation, folder=f"{tmp_path.name}-clean").output
    before, after = shards(storage, data, "train"), shards(storage, clean, "train")
    assert [shard.count for shard in after] == [5, 6]
    assert after[1].index.sha256 == before[1].index.sha256
    assert list(storage.list(f"{tmp_path.name}-clean/index/")) == [
        f"{tmp_path.name}-clean/index/train-000000.safetensors"
    ]


def test_flat_images_are_copies_only_where_their_pixels_are(storage, tmp_path):
    white = [encoded(Image.new("RGB", (40, 40), (255, 255, 255 - number))) for number in range(6)]
    evaluation = tars(storage, tmp_path, "test", white[:2], "test")
    result = subset(storage, tars(storage, tmp_path, "train", white), evaluation, folder=f"{tmp_path.name}-flat")
    assert {line["reason"] for line in lines(storage, result)} == {"exact"}
    assert [result.metrics[name] for name in ("removed_exact", "removed_near", "kept")] == [2, 0, 4]


def test_images_that_cannot_be_decoded_are_kept_and_told(storage, tmp_path):
    images = [encoded(image) for image in photographs(8)]
    # Header and end are whole, so that ingestion takes it; the pixels are not.
    for number in (1, 5):
        images[number] = images[number][:200] + bytes(50) + images[number][250:]
    # Of evaluation splits every image is decoded when it is ingested.
    evaluation = tars(storage, tmp_path, "test", images[4:])
    data = tars(storage, tmp_path, "train", images[:4])
    result = subset(storage, data, evaluation, folder=f"{tmp_path.name}-bad", without_splits=("train",))
    assert [result.metrics[name] for name in ("unreadable", "unreadable_others", "kept")] == [1, 1, 4]
    assert lines(storage, result, "unreadable.jsonl") == [
        {"stage": "data", "split": "train", **places(storage, data, "train")[1]},
        {"stage": "other0", "data": "webdataset", "split": "train", **places(storage, evaluation, "train")[1]},
    ]


def test_after_a_kill_only_the_missing_parts_are_made(storage, tmp_path):
    images = [encoded(image) for image in photographs(12)]
    evaluation = tars(storage, tmp_path, "test", images[:4], "test")
    data = tars(storage, tmp_path, "train", images)
    config, inputs = SubsetConfig(data="data", without=("other0",)), {"data": data, "without.0": evaluation}
    folder = f"{tmp_path.name}-killed"

    def stored():
        """Of fingerprints and parts, what tells a file from one that was written again."""
        found = [key for key in storage.list(f"{folder}/") if "/parts/" in key or "/prints/" in key]
        return {key: storage.stat(key).tag for key in found if "/all-" not in key}

    def killed_in(dying):
        """Tasks of which the first with this label is the last."""

        def tasks(function, items, *, label):
            for item in items:
                yield function(item)
                if label == dying:
                    raise KeyboardInterrupt

        return tasks

    before, counts = {}, []
    for attempt, dying in enumerate(("fingerprints", "copies", "indexes"), 1):
        with pytest.raises(KeyboardInterrupt):
            run(config, inputs, context(storage, folder, attempt, tasks=killed_in(dying)))
        after = stored()
        assert before.items() <= after.items()
        counts.append(len(after))
        before = after
    assert counts == [1, 3, 4]
    result = run(config, inputs, context(storage, folder, attempt=4))
    assert stored() == before
    whole = subset(storage, data, evaluation, folder=f"{tmp_path.name}-whole")
    assert result.output.digest == whole.output.digest
    assert result.metrics == whole.metrics
