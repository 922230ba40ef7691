"""Tars that other people's tools wrote, indexed where they lie."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from sklearn.datasets import load_digits

from cluster.errors import UserError
from cluster.storage import open_storage
from stages.context import Context
from stages.data.config import DataConfig
from stages.data.loader import TrainLoader
from stages.data.manifest import dataset_meta
from stages.ingest.addresses import shard_addresses
from stages.ingest.config import IngestConfig
from stages.ingest.run import run
from tests.unit.stages.shards import shards, stored

DIGITS = load_digits()
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def jpeg(number):
    buffer = io.BytesIO()
    pixels = np.kron(DIGITS.images[number] * 15, np.ones((3, 3))).astype(np.uint8)
    Image.fromarray(pixels).convert("RGB").save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if data is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            else:
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data) if data is not None else None)
    return path


def img2dataset(folder):
    """As img2dataset writes: a caption as text, and JSON with the columns that it was asked to keep."""
    for tar in range(3):
        members = []
        for number in range(20 * tar, 20 * tar + 20):
            key, label = f"{tar:05d}{number:04d}", int(DIGITS.target[number])
            about = {"url": f"https://example.com/{number}.jpg", "key": key, "status": "success", "label": label,
                     "caption": f"a {NAMES[label]}", "width": 24, "height": 24}  # fmt: skip
            members += [(f"{key}.jpg", jpeg(number)), (f"{key}.json", json.dumps(about).encode()),
                        (f"{key}.txt", f"a {NAMES[label]}".encode())]  # fmt: skip
        write_tar(folder / f"{tar:05d}.tar", members)
        (folder / f"{tar:05d}_stats.json").write_text("{}")
    return {"shards": {"train": f"{folder}"}, "label_member": "json", "label_field": "label"}


def open_clip(folder):
    """As open_clip reads: an image and a text beside it; here the text is the name of the class."""
    for tar in range(3):
        members = []
        for number in range(20 * tar, 20 * tar + 20):
            name = NAMES[DIGITS.target[number]]
            members += [(f"part{tar}/{number:06d}.txt", name.encode()), (f"part{tar}/{number:06d}.jpeg", jpeg(number))]
        write_tar(folder / f"shard-{tar:03d}.tar", members)
    return {"shards": {"train": f"{folder}/shard-{{000..002}}.tar"}, "label_member": "txt"}


def classification(folder):
    """As WebDataset's own examples: an image and `cls`."""
    for tar in range(3):
        members = []
        for number in range(20 * tar, 20 * tar + 20):
            members += [(f"{number}.cls", str(DIGITS.target[number]).encode()), (f"{number}.JPG", jpeg(number))]
        write_tar(folder / f"a{tar}.tar", members)
    return {"shards": {"train": f"file://{folder}/a*.tar"}}


def context(tmp_path, attempt=1, tasks=lambda function, items, label: map(function, items)):
    storage = open_storage(f"file://{tmp_path / 'storage'}")
    return Context(storage=storage, folder="stages/ingest/x", attempt=attempt, seed=0, tasks=tasks, gang=None)


def ingest(source, **fields):
    return IngestConfig.model_validate({"source": {"kind": "webdataset", **source}, **fields})


@pytest.mark.parametrize("form", [img2dataset, open_clip, classification])
def test_tars_of_other_tools_are_indexed_in_place_and_feed_the_loader(tmp_path, form):
    source = form(tmp_path / "theirs")
    before = {path: path.read_bytes() for path in (tmp_path / "theirs").glob("*.tar")}
    place = context(tmp_path)
    result = run(ingest(source, class_names=NAMES), {}, place)
    meta = dataset_meta(result.output)
    assert meta.splits["train"].count == 60
    assert list(meta.splits["train"].class_counts) == np.bincount(DIGITS.target[:60], minlength=10).tolist()
    assert {path: path.read_bytes() for path in before} == before
    assert not [key for key in place.storage.list("") if key.endswith(".tar")]
    tars = shards(place.storage, result.output, "train")
    assert [stored(place.storage, result.output, shard.tar.address) for shard in tars] == [
        before[path] for path in sorted(before)
    ]
    plain = {"crop_area": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip": False, "cache": str(tmp_path / "cache")}
    for fetch in ("shards", "samples"):
        with TrainLoader(
            place.storage, result.output, ["train"], DataConfig(**plain, fetch=fetch), resolution=24, seed=0,
            global_batch=60, rank=0, world_size=1, start=0, classes=range(10),
        ) as loader:  # fmt: skip
            batch = next(loader)
        found = sorted(
            (image.tobytes(), label) for image, label in zip(batch.images.numpy(), batch.labels.tolist(), strict=True)
        )
        expected = [(np.asarray(Image.open(io.BytesIO(jpeg(n)))).tobytes(), int(DIGITS.target[n])) for n in range(60)]
        assert found == sorted(expected)


def test_after_a_kill_only_the_missing_indexes_are_made(tmp_path):
    source = classification(tmp_path / "theirs")

    def killed(function, items, *, label):
        yield function(next(iter(items)))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(ingest(source), {}, context(tmp_path, tasks=killed))
    place = context(tmp_path, attempt=2)
    first = place.storage.stat("stages/ingest/x/index/train-000000.safetensors")
    output = run(ingest(source), {}, place).output
    assert place.storage.stat("stages/ingest/x/index/train-000000.safetensors") == first
    assert output.digest == run(ingest(source), {}, context(tmp_path / "b")).output.digest


def test_what_is_wrong_with_a_tar_is_told_and_left_out(tmp_path):
    good = [(f"{n}.{part}", data) for n in range(50) for part, data in (("jpg", jpeg(n)), ("cls", b"3"))]
    bad = [
        ("a.jpg", jpeg(1)), ("b.cls", b"1"), ("c.jpg", jpeg(2)[:-30]), ("c.cls", b"1"), ("d.jpg", jpeg(3)),
        ("d.cls", b"cat"), ("e.jpg", jpeg(4)), ("e.cls", b"10"), ("f.jpg", jpeg(4)), ("f.png", jpeg(4)),
        ("f.cls", b"1"), ("g.jpg", jpeg(5)), ("g.jpg", jpeg(6)), ("g.cls", b"1"), ("/etc/x.jpg", jpeg(7)),
        ("../y.jpg", jpeg(7)), ("h.jpg", None), ("i.jpg", b""), ("i.cls", b"0"),
        ("j.jpg", jpeg(8)), ("j.cls", b"1"), ("j.cls", b"2"),
    ]  # fmt: skip
    write_tar(tmp_path / "a.tar", good + bad)
    config = ingest({"shards": {"train": f"{tmp_path}/a.tar"}}, class_names=NAMES, max_bad=0.5)
    place = context(tmp_path)
    result = run(config, {}, place)
    told = [json.loads(line) for line in place.storage.read(f"{place.prefix}/bad.jsonl").splitlines()]
    assert {line["image"].rpartition("/a.tar/")[2]: line["reason"] for line in told} == {
        "a": "no label", "b": "no image", "c": "truncated", "d": "mislabelled: 'cat' is none of class_names",
        "e": "mislabelled: 10: expected numbers from 0 to below 10", "f": "several images",
        "g": "duplicate key", "/etc/x.jpg": "path leads out of the tar",
        "../y.jpg": "path leads out of the tar", "h.jpg": "link or device", "i": "empty",
        "j": "several labels: 2 members named .cls",
    }  # fmt: skip
    assert (result.metrics["images"], result.metrics["bad"], result.metrics["bad/mislabelled"]) == (50, 12, 2)
    with pytest.raises(UserError, match="12 of 62 images are bad"):
        run(config.model_copy(update={"max_bad": 0.1}), {}, context(tmp_path, attempt=2))


def test_labels_that_no_list_of_classes_bounds_are_bounded(tmp_path):
    members = [("a.jpg", jpeg(1)), ("a.cls", b"3"), ("b.jpg", jpeg(2)), ("b.cls", b"1000000000000"), ("c.jpg", jpeg(3)),
               ("c.cls", b"a cat")]  # fmt: skip
    write_tar(tmp_path / "a.tar", members)
    place = context(tmp_path)
    output = run(ingest({"shards": {"train": f"{tmp_path}/a.tar"}}, max_bad=0.9), {}, place).output
    assert dataset_meta(output).classes == ("0", "1", "2", "3")
    told = [json.loads(line)["reason"] for line in place.storage.read(f"{place.prefix}/bad.jsonl").splitlines()]
    assert told == [
        "mislabelled: 1000000000000: expected numbers from 0 to below 1,000,000",
        "mislabelled: 'a cat' is no number: set class_names to all names",
    ]


def test_several_labels_become_multi_hot_targets(tmp_path):
    labels = [[1, 3, 3], [], [0], [2, 0, 1]]
    members = []
    for number, own in enumerate(labels):
        members += [(f"{number}.jpg", jpeg(number)), (f"{number}.json", json.dumps({"labels": own}).encode())]
    write_tar(tmp_path / "a.tar", members)
    source = {"shards": {"train": f"{tmp_path}/a.tar"}, "label_member": "json", "label_field": "labels"}
    place = context(tmp_path)
    output = run(ingest({**source, "multi_label": True}), {}, place).output
    assert dataset_meta(output).multi_label
    assert dataset_meta(output).splits["train"].class_counts == (2, 2, 1, 1)
    with TrainLoader(
        place.storage, output, ["train"], DataConfig(cache=str(tmp_path / "cache"), streams=1), resolution=8, seed=0,
        global_batch=4, rank=0, world_size=1, start=0, classes=[0, 1, 2, 3],
    ) as loader:  # fmt: skip
        targets = next(loader).labels
    assert sorted(targets.tolist()) == sorted([[0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]])
    with pytest.raises(UserError, match="bad"):
        run(ingest(source), {}, context(tmp_path / "single"))


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("{root}/nothing*.tar", "means no tar"),
        ("{root}/x-{{00..01}}.tar", "x-00.tar is not there"),
        (["{root}/a.tar", "{root}/a.tar"], "is named twice"),
        ("{root}/*/a.tar", "after the last slash alone"),
    ],
)
def test_patterns_that_mean_nothing_are_refused(tmp_path, patterns, expected):
    write_tar(tmp_path / "a.tar", [])
    given = [patterns] if isinstance(patterns, str) else patterns
    with pytest.raises(UserError, match=expected):
        ingest({"shards": {"train": [pattern.format(root=tmp_path) for pattern in given]}}).external_digest()


def test_the_digest_follows_the_tars(tmp_path):
    write_tar(tmp_path / "a.tar", [("1.jpg", jpeg(1)), ("1.cls", b"1")])
    (tmp_path / "list.txt").write_text(f"{tmp_path}/a.tar\n")
    config = ingest({"shards": {"train": f"{tmp_path}/list.txt"}})
    digest = config.external_digest()
    assert digest == ingest({"shards": {"train": f"{tmp_path}/a.tar"}}).external_digest()
    write_tar(tmp_path / "a.tar", [("1.jpg", jpeg(2)), ("1.cls", b"1")])
    assert config.external_digest() != digest


def test_lists_of_tars_are_read_line_by_line_and_relative_to_themselves(tmp_path):
    tars = [tmp_path / "sub" / "a b.tar", tmp_path / "c.tar", tmp_path / "0.tar", tmp_path / "1.tar"]
    for number, path in enumerate(tars):
        write_tar(path, [("1.jpg", jpeg(number)), ("1.cls", b"1")])
    (tmp_path / "list.txt").write_text(f"sub/a b.tar\n\n  {tmp_path}/c.tar  \r\n{{0..1}}.tar\n")
    found = shard_addresses(ingest({"shards": {"train": f"{tmp_path}/list.txt"}}).source)
    assert found == {"train": [f"file://{path}" for path in tars]}
    with pytest.raises(UserError, match=r"source\.shards: the list file://.*/none\.txt is not there"):
        shard_addresses(ingest({"shards": {"train": f"{tmp_path}/none.txt"}}).source)
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"list\.txt is no text in UTF-8"):
        shard_addresses(ingest({"shards": {"train": f"{tmp_path}/list.txt"}}).source)


def test_a_file_that_is_no_tar_is_named(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(UserError, match=r"a\.tar is no whole tar"):
        run(ingest({"shards": {"train": f"{tmp_path}/a.tar"}}), {}, context(tmp_path))


def test_tars_that_end_early_or_have_a_hole_are_refused(tmp_path):
    path = write_tar(
        tmp_path / "a.tar", [(f"{n}.{e}", d) for n in range(9) for e, d in (("jpg", jpeg(n)), ("cls", b"1"))]
    )
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        headers = [member.offset for member in tar]
        end = tar.offset
    cuts = {"damaged header": data[: headers[8]] + b"?" * 512 + data[headers[8] + 512 :],
            "zeros for a header": data[: headers[8]] + bytes(512) + data[headers[8] + 512 :],
            "at a member's end": data[: headers[8]], "within a header": data[: headers[8] + 100],
            "without its end": data[:end], "two, one after the other": data + data}  # fmt: skip
    config = ingest({"shards": {"train": f"{path}"}})
    for name, cut in cuts.items():
        path.write_bytes(cut)
        with pytest.raises(UserError, match=r"a\.tar is no whole tar: .* byte \d+.*fetch or write it again"):
            run(config, {}, context(tmp_path / name))
    path.write_bytes(data[: end + 512])
    assert run(config, {}, context(tmp_path / "whole")).metrics["images"] == 9


@pytest.mark.parametrize(
    "fields",
    [
        *({"quality": 90}, {"held_out_classes": 1}, {"destination": "s3://bucket/x"}, {"samples_per_shard": 7}),
        *({"validation_fraction": 0}, {"test_fraction": 0.2}, {"shard_megabytes": 1}),
    ],
)
def test_what_would_rewrite_the_tars_is_refused(tmp_path, fields):
    with pytest.raises(ValidationError, match="tars that are indexed in place are not rewritten"):
        ingest({"shards": {"train": "a.tar"}}, **fields)


def test_a_label_in_json_needs_its_field():
    with pytest.raises(ValidationError, match="label_field: label"):
        ingest({"shards": {"train": "a.tar"}, "label_member": "json"})
