import gzip
import io
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from cluster.errors import UserError
from cluster.storage import open_storage
from cluster.storage.base import NotFound
from stages.context import Context, read_output
from stages.data.manifest import dataset_meta
from stages.ingest.config import DigitsSource, FolderSource, IdxSource, IngestConfig
from stages.ingest.headers import BadImage
from stages.ingest.prepare import check, prepare
from stages.ingest.run import run
from stages.ingest.sources.base import Listing, RawImage
from stages.ingest.splits import fill_shards
from tests.unit.stages.shards import index, samples, shards


def in_place(function, items, *, label):
    return [function(item) for item in items]


def context(tmp_path, seed=0, tasks=in_place, attempt=1):
    return Context(
        storage=open_storage(f"file://{tmp_path / 'storage'}"),
        folder="stages/ingest/x",
        attempt=attempt,
        seed=seed,
        tasks=tasks,
        gang=None,
    )


def digits(**settings):
    return IngestConfig(source=DigitsSource(), **{"samples_per_shard": 300, "held_out_classes": 2, **settings})


def stored(storage, output, split):
    """(key, image, label) of every sample of a split, read by plain webdataset."""
    return [
        (s["__key__"], next(s[extension] for extension in ("png", "jpg", "webp") if extension in s), int(s["cls"]))
        for s in samples(storage, output, split)
    ]


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def test_every_digit_is_stored_once_and_no_held_out_class_is_trained_on(tmp_path):
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    place = context(tmp_path)
    output = run(digits(), {}, place).output
    meta = dataset_meta(output)
    assert list(meta.splits) == ["train", "validation", "test", "held_out", "held_out_test"]
    assert sum(split.count for split in meta.splits.values()) == 1797
    assert len(meta.held_out) == 2
    keys, bunch = [], sklearn_datasets.load_digits()
    for name, split in meta.splits.items():
        found = stored(place.storage, output, name)
        assert len(found) == split.count == sum(shard.count for shard in shards(place.storage, output, name))
        for key, data, label in found:
            assert (label in meta.held_out) == name.startswith("held_out")
            assert label == bunch.target[int(key)]
            assert np.array_equal(pixels(data), np.rint(bunch.images[int(key)] * 255 / 16))
        keys += [key for key, _, _ in found]
    assert len(set(keys)) == 1797


def test_splits_take_their_share_of_each_class(tmp_path):
    output = run(digits(validation_fraction=0.2, test_fraction=0.1, held_out_classes=0), {}, context(tmp_path)).output
    splits = dataset_meta(output).splits
    assert list(splits) == ["train", "validation", "test"]
    counts = {name: np.array(split.class_counts) for name, split in splits.items()}
    whole = sum(counts.values())
    assert abs(counts["validation"] - 0.2 * whole).max() <= 0.5
    assert abs(counts["test"] - 0.1 * whole).max() <= 0.5


def test_a_second_run_gives_the_same_bytes_and_digests(tmp_path):
    first, second = context(tmp_path / "a"), context(tmp_path / "b", attempt=7)
    one, other = run(digits(), {}, first).output, run(digits(), {}, second).output
    assert one.digest == other.digest
    contents = [
        {key: place.storage.read(key) for key in place.storage.list("") if "/attempts/" not in key}
        for place in (first, second)
    ]
    assert len(contents[0]) > 20
    assert contents[0] == contents[1]


def test_another_seed_draws_other_splits(tmp_path):
    one = run(digits(), {}, context(tmp_path / "a")).output
    other = run(digits(), {}, context(tmp_path / "b", seed=1)).output
    assert one.digest != other.digest


def test_samples_are_mixed_within_the_shards(tmp_path):
    place = context(tmp_path)
    output = run(digits(samples_per_shard=100), {}, place).output
    counts = shards(place.storage, output, "train").counts.tolist()
    assert counts[:-1] == [100] * (len(counts) - 1)
    found = [index(place.storage, output, number).class_counts() for number in range(len(counts))]
    assert [len(classes) for classes in found] == [8] * len(counts)


def test_the_result_tells_what_was_stored(tmp_path):
    result = run(digits(), {}, context(tmp_path))
    rows = result.tables["splits"]
    assert result.metrics["images"] == 1797
    assert result.metrics["classes"] == 10
    assert result.metrics["shards"] == sum(row["shards"] for row in rows)
    assert next(row for row in rows if row["split"] == "held_out")["classes"] == 2
    json.dumps(rows)


def test_after_a_kill_only_the_missing_shards_are_made(tmp_path):
    """The second attempt finds what the first one has finished, wherever it was killed."""

    def killed(function, items, *, label):
        for number, item in enumerate(items):
            if number == 3:
                raise KeyboardInterrupt
            yield function(item)

    place = context(tmp_path, tasks=killed)
    with pytest.raises(KeyboardInterrupt):
        run(digits(), {}, place)
    with pytest.raises(NotFound):
        read_output(place.storage, place.prefix)
    before = {key: place.storage.stat(key) for key in place.storage.list(f"{place.folder}/shards/")}
    assert len(before) == 3
    # A tar whose part document is not there does not count: its task was killed between the two.
    place.storage.delete(f"{place.folder}/parts/train-000002.json")
    output = run(digits(), {}, context(tmp_path, attempt=2)).output
    after = {key: place.storage.stat(key) for key in place.storage.list(f"{place.folder}/shards/")}
    kept = [key for key in before if after[key] == before[key]]
    assert kept == [f"{place.folder}/shards/train-00000{number}.tar" for number in (0, 1)]
    undisturbed = run(digits(), {}, context(tmp_path / "other")).output
    assert output.digest == undisturbed.digest


def test_tasks_can_be_sent_to_another_process(tmp_path):
    def through_pickle(function, items, *, label):
        return [pickle.loads(pickle.dumps(function))(pickle.loads(pickle.dumps(item))) for item in items]

    sent = run(digits(), {}, context(tmp_path / "a", tasks=through_pickle)).output
    assert sent.digest == run(digits(), {}, context(tmp_path / "b")).output.digest


def test_holding_out_every_class_is_refused(tmp_path):
    with pytest.raises(UserError, match="held_out_classes=10"):
        run(digits(held_out_classes=10), {}, context(tmp_path))


def test_class_names_must_be_one_for_each_class(tmp_path):
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    output = run(digits(class_names=names, name="handwriting"), {}, context(tmp_path)).output
    assert dataset_meta(output).classes == names
    assert dataset_meta(output).name == "handwriting"
    with pytest.raises(UserError, match="9 names and the source has 10"):
        run(digits(class_names=names[1:]), {}, context(tmp_path, attempt=2))


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes() + array.tobytes()


@pytest.fixture
def mnist(tmp_path):
    """MNIST's four files with random images, two of them compressed: 90 to train and 30 to test, 3 classes."""
    folder, random = tmp_path / "mnist", np.random.default_rng(0)
    folder.mkdir()
    content = {}
    for name, count in (("train", 90), ("t10k", 30)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 3).astype(np.uint8)
        content[name] = images
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx(labels))
    return folder, content


def test_idx_files_keep_their_own_test_split(tmp_path, mnist):
    folder, content = mnist
    place = context(tmp_path)
    config = IngestConfig(source=IdxSource(path=str(folder)), test_fraction=0.5, samples_per_shard=20)
    output = run(config, {}, place).output
    assert {name: split.count for name, split in dataset_meta(output).splits.items()} == {
        "train": 81,
        "validation": 9,
        "test": 30,
    }
    everything = np.concatenate([content["train"], content["t10k"]])
    for key, data, label in stored(place.storage, output, "test"):
        assert int(key) >= 90
        assert label == (int(key) - 90) % 3
        assert np.array_equal(pixels(data), everything[int(key)])


def test_idx_files_that_are_missing_cut_or_unequal_are_named(tmp_path, mnist):
    folder, _content = mnist
    config = IngestConfig(source=IdxSource(path=str(folder)))
    labels = folder / "train-labels-idx1-ubyte"
    whole = labels.read_bytes()
    labels.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"train-labels-idx1-ubyte is no IDX file.*97 bytes"):
        run(config, {}, context(tmp_path))
    labels.write_bytes(idx(np.zeros(89, dtype=np.uint8)))
    with pytest.raises(UserError, match="90 images and its labels are 89"):
        run(config, {}, context(tmp_path))
    labels.unlink()
    with pytest.raises(UserError, match="train-labels-idx1-ubyte is not there"):
        config.external_digest()


def picture(path, shade, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5), (shade, 10, 20)).save(path, **options)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pictures"
    for label, name in enumerate(("cat", "dog")):
        for number in range(8):
            picture(root / name / f"{number}.jpg", 100 * label + number)
        picture(root / name / "deeper" / "x.PNG", 50)
        picture(root / name / "x.bmp", 60)
        (root / name / "notes.txt").write_text("no image")
    return root


def test_a_folder_per_class_keeps_the_files_bytes(tmp_path, folder):
    place = context(tmp_path)
    config = IngestConfig(source=FolderSource(path=str(folder)), validation_fraction=0.0, test_fraction=0.2)
    output = run(config, {}, place).output
    meta = dataset_meta(output)
    assert meta.classes == ("cat", "dog")
    assert {name: split.count for name, split in meta.splits.items()} == {"train": 16, "test": 4}
    found = [sample for split in meta.splits for sample in stored(place.storage, output, split)]
    originals = [path.read_bytes() for path in folder.rglob("*") if path.suffix in (".jpg", ".PNG")]
    assert sorted(data for _, data, _ in found if data in originals) == sorted(originals)
    converted = [data for _, data, _ in found if data not in originals]
    assert [pixels(data)[0, 0].tolist() for data in converted] == [[60, 10, 20]] * 2
    for _, data, label in found:
        if pixels(data)[0, 0, 0] >= 95:
            assert label == 1


def test_a_folder_with_splits_keeps_them(tmp_path, folder):
    root = tmp_path / "split"
    root.mkdir()
    folder.rename(root / "train")
    for split, count in (("val", 3), ("test", 2)):
        for name in ("cat", "dog"):
            for number in range(count):
                picture(root / split / name / f"{number}.png", number)
    config = IngestConfig(source=FolderSource(path=str(root)))
    splits = dataset_meta(run(config, {}, context(tmp_path)).output).splits
    assert {name: split.count for name, split in splits.items()} == {"train": 20, "validation": 6, "test": 4}
    picture(root / "val" / "bird" / "1.png", 0)
    with pytest.raises(UserError, match="class validation/bird has no training images"):
        run(config, {}, context(tmp_path, attempt=2))


def test_files_that_are_not_used_are_counted_by_what_they_are(tmp_path, folder, capsys):
    (folder / "cat" / "x.heic").write_bytes(b"1")
    (folder / "cat" / "y.HEIC").write_bytes(b"1")
    (folder / "cat" / "plain").write_bytes(b"text")
    (folder / "dog" / "1.jpg").rename(folder / "dog" / "image")
    (folder / "bird").mkdir()
    picture(folder / "top.jpg", 1)
    (folder / "README").write_text("top")
    result = run(IngestConfig(source=FolderSource(path=str(folder))), {}, context(tmp_path))
    assert result.metrics["images"] == 20
    counts = {name: value for name, value in result.metrics.items() if name.startswith("unused")}
    assert counts == {
        "unused": 8, "unused/heic": 2, "unused/txt": 2, "unused/without a suffix": 2, "unused/class without images": 1,
        "unused/image outside of a class": 1,
    }  # fmt: skip
    assert {"what": "not used: .heic", "images": 2} in result.tables["report"]
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("not used")]
    assert told == [
        "not used, since they are no images in a class: 2 .heic, 2 .txt, 2 without a suffix, 1 class without images, "
        "1 image outside of a class"
    ]


def test_rare_kinds_of_files_are_counted_together(tmp_path, folder):
    for number in range(40):
        (folder / "cat" / f"frame.{number:03d}").write_bytes(b"1")
    metrics = run(IngestConfig(source=FolderSource(path=str(folder))), {}, context(tmp_path)).metrics
    assert (metrics["unused"], metrics["unused/others"], metrics["unused/txt"]) == (42, 21, 2)
    assert len([name for name in metrics if name.startswith("unused/")]) == 21


def test_links_to_nothing_and_in_circles_are_reported(tmp_path, folder):
    (folder / "cat" / "gone.jpg").symlink_to(tmp_path / "nothing.jpg")
    (folder / "cat" / "deeper" / "again").symlink_to(folder / "cat")
    (folder / "dog" / "self").symlink_to(folder / "dog" / "self")
    picture(tmp_path / "elsewhere" / "a.jpg", 9)
    (folder / "dog" / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "dog" / "b.jpg").symlink_to(tmp_path / "elsewhere" / "a.jpg")
    place = context(tmp_path)
    result = run(IngestConfig(source=FolderSource(path=str(folder)), max_bad=0.2), {}, place)
    told = [json.loads(line) for line in place.storage.read(f"{place.prefix}/bad.jsonl").splitlines()]
    assert {line["image"]: line["reason"] for line in told} == {
        "cat/deeper/again": "link to a folder that it lies in",
        "cat/gone.jpg": "link to nothing",
        "dog/self": "cannot be read: Too many levels of symbolic links",
    }
    assert result.metrics["images"] == 22


@pytest.mark.parametrize("splits", [["test", "val"], ["validation"], ["test", "val", "notes"]])
def test_splits_without_training_images_are_no_classes(tmp_path, splits):
    for name in splits:
        picture(tmp_path / "photos" / name / "cat" / "1.jpg", 1)
    with pytest.raises(UserError, match=rf"has {splits[0]}.* and no train: put the training images"):
        IngestConfig(source=FolderSource(path=str(tmp_path / "photos"))).external_digest()


def test_folders_and_files_beside_train_are_counted(tmp_path, folder):
    folder.rename(tmp_path / "train")
    picture(tmp_path / "photos" / "extra" / "1.jpg", 1)
    picture(tmp_path / "photos" / "1.jpg", 1)
    (tmp_path / "train").rename(tmp_path / "photos" / "train")
    metrics = run(IngestConfig(source=FolderSource(path=str(tmp_path / "photos"))), {}, context(tmp_path)).metrics
    assert (metrics["unused/folder beside train"], metrics["unused/image outside of a class"]) == (1, 1)


def test_bad_images_are_left_out_with_their_reasons_up_to_a_limit(tmp_path, folder):
    (folder / "cat" / "3.jpg").write_bytes(b"broken")
    (folder / "cat" / "4.jpg").write_bytes(b"")
    whole = (folder / "dog" / "5.jpg").read_bytes()
    (folder / "dog" / "5.jpg").write_bytes(whole[:-20])
    (folder / "dog" / "6.jpg").rename(folder / "dog" / "6.png")
    config = IngestConfig(source=FolderSource(path=str(folder)))
    place = context(tmp_path)
    with pytest.raises(UserError, match=r"3 of 20 images are bad, more than max_bad=0.001 \(1 .*cat/|dog/"):
        run(config, {}, place)
    told = [json.loads(line) for line in place.storage.read(f"{place.prefix}/bad.jsonl").splitlines()]
    expected = {"cat/3.jpg": "no image that can be read", "cat/4.jpg": "empty", "dog/5.jpg": "truncated"}
    assert {line["image"]: line["reason"] for line in told} == expected
    result = run(config.model_copy(update={"max_bad": 0.2}), {}, context(tmp_path, attempt=2))
    assert result.metrics["images"] == 17
    assert (result.metrics["bad"], result.metrics["bad/truncated"], result.metrics["traits/misnamed"]) == (3, 1, 1)
    assert result.metrics["traits/encoded anew"] == 2
    assert {row["what"]: row["images"] for row in result.tables["report"]}["left out: empty"] == 1


def test_decoding_finds_what_markers_cannot(tmp_path, folder):
    path = folder / "cat" / "deeper" / "x.PNG"
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 8] ^= 255
    path.write_bytes(data)
    config = IngestConfig(source=FolderSource(path=str(folder)), max_bad=0.1)
    assert run(config, {}, context(tmp_path / "a")).metrics["bad"] == 0
    decoded = run(config.model_copy(update={"verify": "decode"}), {}, context(tmp_path / "b"))
    assert decoded.metrics["bad/cannot be decoded"] == 1


def photograph(**options):
    """A JPEG with detail in it, of 256 × 320 pixels."""
    blocks = np.random.default_rng(0).integers(0, 256, (32, 40, 3))
    buffer, image = io.BytesIO(), Image.fromarray(np.kron(blocks, np.ones((8, 8, 1))).astype(np.uint8))
    image.convert(options.pop("mode", "RGB")).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"mode": "L"}, {"mode": "CMYK"}, {"restart_marker_blocks": 4}]
)
def test_jpegs_with_damaged_pixels_are_found_by_decoding(tmp_path, options):
    whole = photograph(**options)
    half, cut = len(whole) // 2, len(whole) // 8
    spoiled = {"middle out": whole[:half] + whole[half + cut :], "cut": whole[:half] + b"\xff\xd9"}
    # Zeros are a long run of valid codes in a progressive image: nothing tells them from pixels.
    if "progressive" not in options:
        spoiled["zeros"] = whole[:half] + bytes(cut) + whole[half + cut :]
    config = IngestConfig(source=DigitsSource(), verify="decode")
    assert check(RawImage(name="x.jpg", data=whole), config) == check(
        RawImage(name="x.jpg", data=whole), config.model_copy(update={"verify": "markers"})
    )
    for data in spoiled.values():
        assert check(RawImage(name="x.jpg", data=data), config.model_copy(update={"verify": "markers"})) is not None
        with pytest.raises(BadImage, match=r"damaged pixels: (Corrupt|Premature)"):
            check(RawImage(name="x.jpg", data=data), config)
        with pytest.raises(BadImage, match=r"damaged pixels: (Corrupt|Premature)"):
            prepare(RawImage(name="x.jpg", data=data), config)


def test_images_are_made_smaller_and_encoded_anew_where_asked(tmp_path, folder):
    picture(folder / "cat" / "large.jpg", 70)
    Image.new("RGB", (300, 200), "red").save(folder / "dog" / "wide.jpg")
    place = context(tmp_path)
    config = IngestConfig(source=FolderSource(path=str(folder)), longest_side=100, quality=80)
    output = run(config, {}, place).output
    found = [data for split in dataset_meta(output).splits for _, data, _ in stored(place.storage, output, split)]
    images = [Image.open(io.BytesIO(data)) for data in found]
    assert {image.format for image in images} == {"JPEG"}
    assert sorted(image.size for image in images)[-2:] == [(6, 5), (100, 67)]


def test_images_above_pillows_own_limit_are_taken_where_asked(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    config = IngestConfig(source=FolderSource(path=str(folder)), max_pixels=30, verify="decode")
    assert run(config, {}, context(tmp_path)).metrics["images"] == 20
    Image.new("RGB", (16, 8)).save(folder / "cat" / "y.bmp")
    config = config.model_copy(update={"max_bad": 0.1})
    assert run(config, {}, context(tmp_path / "b")).metrics["bad/too many pixels"] == 1


def test_shards_are_filled_by_size(tmp_path, folder):
    place = context(tmp_path)
    config = IngestConfig(
        source=FolderSource(path=str(folder)), validation_fraction=0, test_fraction=0, shard_megabytes=0.015
    )
    output = run(config, {}, place).output
    tars = list(shards(place.storage, output, "train"))
    assert len(tars) > 2
    assert sum(tar.count for tar in tars) == 20
    assert max(tar.tar.bytes for tar in tars) < 0.015 * 2**20 + 10240


def test_shards_are_as_few_and_as_equal_as_can_be(tmp_path, folder):
    sizes = np.random.default_rng(0).integers(20_000, 60_000, 5000)
    listing = Listing(classes=("a",), references=range(5000), labels=np.zeros(5000, dtype=np.int64), sizes=sizes,
                      splits=np.zeros(5000, dtype=np.int8))  # fmt: skip
    for megabytes in (10, 50, 64, 1000):
        config = digits(samples_per_shard=None, shard_megabytes=megabytes)
        groups = fill_shards(listing, np.arange(5000), config)
        assert np.concatenate(groups).tolist() == list(range(5000))
        bytes_of = [int((sizes[group] + 2048).sum()) for group in groups]
        assert max(bytes_of) <= megabytes * 2**20
        assert len(groups) <= -(-sum(bytes_of) // (megabytes * 2**20 - 62_048))
        assert min(bytes_of) > max(bytes_of) - (len(groups) + 1) * 62_048


def test_the_tars_go_where_they_are_wanted(tmp_path, folder):
    destination = f"file://{tmp_path}/public/pictures"
    place = context(tmp_path)
    config = IngestConfig(source=FolderSource(path=str(folder)), destination=destination)
    output = run(config, {}, place).output
    assert sorted(path.name for path in (tmp_path / "public" / "pictures").glob("*.tar")) == [
        f"{split}-000000.tar" for split in ("test", "train", "validation")
    ]
    assert len(stored(place.storage, output, "train")) == dataset_meta(output).splits["train"].count
    assert not list(place.storage.list(f"{place.folder}/shards/"))


def test_the_digest_of_a_folder_follows_its_files_not_its_place(tmp_path, folder):
    digest = IngestConfig(source=FolderSource(path=str(folder))).external_digest()
    moved = folder.rename(tmp_path / "moved")
    config = IngestConfig(source=FolderSource(path=str(moved)))
    assert config.external_digest() == digest
    picture(moved / "cat" / "new.jpg", 1)
    assert config.external_digest() != digest
    (moved / "cat" / "new.jpg").unlink()
    assert config.external_digest() == digest
    (moved / "cat" / "1.jpg").touch()
    assert config.external_digest() != digest


def test_missing_and_empty_folders_say_what_was_expected(tmp_path):
    with pytest.raises(UserError, match=r"nowhere is not a folder.*each class"):
        IngestConfig(source=FolderSource(path=str(tmp_path / "nowhere"))).external_digest()
    with pytest.raises(UserError, match="no images to train on"):
        IngestConfig(source=FolderSource(path=str(tmp_path))).external_digest()


def test_settings_that_cannot_be_are_refused_with_their_values():
    with pytest.raises(ValidationError, match=r"validation_fraction=0\.6"):
        digits(validation_fraction=0.6, test_fraction=0.5)
    with pytest.raises(ValidationError, match="kind"):
        IngestConfig.model_validate({"source": {"kind": "web"}})


def test_a_relative_folder_is_meant_of_where_the_workflow_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert FolderSource(path="pictures").path == str(tmp_path / "pictures")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert FolderSource(path="~/pictures").path == "/home/somebody/pictures"


def test_settings_and_manifests_are_read_without_heavy_imports():
    code = (
        "import sys, stages.ingest.config, stages.data.config, stages.data.manifest;"
        "print(sorted({'torch', 'numpy', 'PIL', 'webdataset', 'pyarrow', 'scipy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_source_is_chosen_by_its_kind():
    config = IngestConfig.model_validate({"source": {"kind": "folder", "path": "/pictures"}})
    assert isinstance(config.source, FolderSource)
    assert digits().function() is run
    assert digits().external_digest() == digits(samples_per_shard=7).external_digest()


def test_a_class_map_names_the_folders(tmp_path):
    for name in ("n01", "n02"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / "photos" / name / f"{number}.png")
    (tmp_path / "names.json").write_text('{"n01": "tench", "n02": "crane"}')
    source = FolderSource(path=str(tmp_path / "photos"), class_map=str(tmp_path / "names.json"))
    config = IngestConfig(source=source)
    assert dataset_meta(run(config, {}, context(tmp_path)).output).classes == ("tench", "crane")
    before = config.external_digest()
    (tmp_path / "names.json").write_text('{"n01": "tench", "n03": "crane"}')
    assert config.external_digest() != before
    with pytest.raises(UserError, match=r"names.json has no name for n02 \(1 of 2 classes\)"):
        run(config, {}, context(tmp_path, attempt=2))
