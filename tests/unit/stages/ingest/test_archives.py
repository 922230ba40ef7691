"""Tars of classes, in folders and in tars, as ImageNet is downloaded."""

import csv
import gzip
import io
import json
import tarfile

import numpy as np
import pytest
from scipy.io import savemat

from cluster.errors import UserError
from stages.ingest.config import ArchivesSource
from stages.ingest.run import run
from stages.ingest.sources import imagenet, open_source
from stages.ingest.sources.base import Missing, RawImage
from tests.unit.stages.ingest.pictures import context, digit, ingest, ingested, jpeg

CLASSES = ("n00000011", "n00000022", "n00000033")
IDS = {3: "n00000011", 1: "n00000022", 2: "n00000033", 4: "n00000000"}
"""As ILSVRC numbers them: not in the order of their names, and the last one has no images."""


def tar_bytes(members, form=tarfile.GNU_FORMAT):
    """A tar of (name, bytes) and of ready entries."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def entry(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def class_images(number):
    return [(f"{CLASSES[number]}_{n}.JPEG", jpeg(n)) for n in range(100 * number, 100 * number + 8)]


def class_tars():
    return [(f"{name}.tar", tar_bytes(class_images(number))) for number, name in enumerate(CLASSES)]


def training():
    return sorted((data, number) for number in range(3) for _, data in class_images(number))


def archives(path, **fields):
    return {"kind": "archives", "path": str(path), **fields}


def source(path, **fields):
    return open_source(ArchivesSource(path=str(path), **fields))


def everything(found):
    return sorted(sample for split in found.values() for sample in split)


VALIDATION = [(f"ILSVRC2012_val_{n + 1:08d}.JPEG", jpeg(300 + n), CLASSES[digit(300 + n) % 3]) for n in range(12)]


def meta_mat():
    """The structure of the development kit's `meta.mat`."""
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    kinds += [("children", "O"), ("wordnet_height", "O"), ("num_train_images", "O")]
    synsets = np.zeros((len(IDS), 1), dtype=kinds)
    for row, (number, name) in enumerate(sorted(IDS.items())):
        children = np.array([[1.0, 2.0, 3.0]]) if number == 4 else np.zeros((1, 0))
        synsets[row, 0] = (float(number), name, "words", "gloss", float(children.size), children, 1.0, 8.0)
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": synsets})
    return buffer.getvalue()


def devkit(folder, truth=None, meta=None):
    numbers = {name: number for number, name in IDS.items()}
    lines = truth or "".join(f"{numbers[name]}\n" for *_, name in VALIDATION)
    data = "ILSVRC2012_devkit_t12/data/"
    members = [
        (f"{data}ILSVRC2012_validation_ground_truth.txt", lines.encode()),
        (f"{data}meta.mat", meta or meta_mat()),
    ]
    (folder / imagenet.DEVKIT).write_bytes(
        gzip.compress(tar_bytes([("ILSVRC2012_devkit_t12/readme.txt", b"x"), *members]))
    )


def synset_labels(folder):
    (folder / imagenet.SYNSET_LABELS).write_text("".join(f"{name}\n" for *_, name in VALIDATION))


def kaggle(folder):
    with open(folder / imagenet.KAGGLE, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ImageId", "PredictionString"])
        for name, _, label in reversed(VALIDATION):
            writer.writerow([name.removesuffix(".JPEG"), f"{label} 1 2 3 4 {label} 5 6 7 8 "])


@pytest.fixture
def ilsvrc(tmp_path):
    """ILSVRC 2012 in small, its validation images out of order."""
    folder = tmp_path / "imagenet"
    folder.mkdir()
    (folder / imagenet.TRAIN).write_bytes(tar_bytes(class_tars()))
    (folder / imagenet.VALIDATION).write_bytes(tar_bytes([(name, data) for name, data, _ in reversed(VALIDATION)]))
    return folder


@pytest.mark.parametrize("labels", [devkit, synset_labels, kaggle])
@pytest.mark.parametrize("split", ["test", "validation"])
def test_ilsvrc_as_it_is_downloaded(tmp_path, ilsvrc, labels, split):
    labels(ilsvrc)
    config = ingest(archives(ilsvrc, validation_as=split), validation_fraction=0.25, test_fraction=0.25)
    meta, found = ingested(tmp_path, config)
    assert meta.classes == CLASSES
    assert sorted(found[split]) == sorted((data, CLASSES.index(label)) for _, data, label in VALIDATION)
    drawn = {"test": "validation", "validation": "test"}[split]
    assert (len(found["train"]), len(found[drawn])) == (18, 6)
    assert sorted(found["train"] + found[drawn]) == training()


def test_the_training_images_alone_are_enough(tmp_path, ilsvrc):
    (ilsvrc / imagenet.VALIDATION).unlink()
    meta, found = ingested(tmp_path, ingest(archives(ilsvrc)))
    assert meta.classes == CLASSES
    assert everything(found) == training()


def whole(folder):
    (folder / "fall11_whole.tar").write_bytes(tar_bytes(class_tars()))
    return folder / "fall11_whole.tar"


def whole_in_a_folder(folder):
    return whole(folder).parent


def one_tar_per_class(folder):
    for name, data in class_tars():
        (folder / name).write_bytes(data)
    return folder


def winter(folder):
    (folder / "winter21_whole").mkdir()
    (folder / "winter21_whole.tar.gz").write_bytes(b"unpacked beside")
    one_tar_per_class(folder / "winter21_whole")
    return folder


@pytest.mark.parametrize("form", [whole, whole_in_a_folder, one_tar_per_class, winter])
def test_tars_of_classes_in_a_tar_or_in_a_folder(tmp_path, form):
    folder = tmp_path / "a:b %"
    folder.mkdir()
    meta, found = ingested(tmp_path, ingest(archives(form(folder), expected_classes=3)))
    assert meta.classes == CLASSES
    assert everything(found) == training()
    assert meta.splits["train"].shards > 1


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_folders_within_a_tar(tmp_path, form):
    names = ["./a.jpg", f"{'long/' * 60}b.jpg", "ünïcode: 1:2.jpg", "c/" + "d" * 120 + ".jpg"]
    members = [entry("c", tarfile.DIRTYPE), ("notes.txt", b"x"), *((name, jpeg(n)) for n, name in enumerate(names))]
    inner = tar_bytes(members, form)
    path = tmp_path / "x.tar"
    path.write_bytes(tar_bytes([("README", b"two"), (f"{'deep/' * 40}one.tar", inner), ("two.tar", inner)], form))
    found = source(path).listing()
    assert found.classes == ("one", "two")
    images = list(source(path).read(found.references))
    assert [image.data for image in images if isinstance(image, RawImage)] == [jpeg(n) for n in range(4)] * 2
    assert [image.name for image in images[:3]] == ["one/a.jpg", f"one/{names[1]}", f"one/{names[2]}"]
    assert found.sizes.tolist() == [len(jpeg(n)) for n in range(4)] * 2


def test_a_listing_reads_headers_alone(tmp_path, monkeypatch):
    """Of tars with large images, a listing asks for a small part of the bytes."""
    import os

    asked, pread = [], os.pread
    path = tmp_path / "x.tar"
    path.write_bytes(
        tar_bytes([(f"{c}.tar", tar_bytes([(f"{n}.jpg", bytes(200_000)) for n in range(10)])) for c in "ab"])
    )
    monkeypatch.setattr(os, "pread", lambda *place: asked.append(place[1]) or pread(*place))
    assert len(source(path).listing()) == 20
    assert sum(asked) < path.stat().st_size / 20


def test_what_could_lead_out_of_a_tar_is_refused_and_counted(tmp_path):
    bad = [
        ("/etc/a.jpg", jpeg(0)), ("../b.jpg", jpeg(0)), entry("c.jpg", tarfile.SYMTYPE, "0.jpg"),
        entry("d.jpg", tarfile.LNKTYPE, "0.jpg"), entry("e.jpg", tarfile.CHRTYPE), ("0.jpg", jpeg(1)),
    ]  # fmt: skip
    inner = tar_bytes([*((f"{n}.jpg", jpeg(n)) for n in range(20)), *bad])
    path = tmp_path / "x.tar"
    path.write_bytes(
        tar_bytes([("one.tar", inner), entry("two.tar", tarfile.SYMTYPE, "one.tar"), ("../three.tar", inner)])
    )
    place = context(tmp_path)
    result = run(ingest(archives(path), max_bad=0.3), {}, place)
    assert (result.metrics["images"], result.metrics["bad"], result.metrics["classes"]) == (20, 8, 1)
    told = [json.loads(line) for line in place.storage.read(f"{place.prefix}/bad.jsonl").splitlines()]
    assert {line["image"]: line["reason"] for line in told} == {
        "x.tar/two.tar": "link or device",
        "x.tar/../three.tar": "path leads out of the tar",
        "x.tar/one//etc/a.jpg": "path leads out of the tar",
        "x.tar/one/../b.jpg": "path leads out of the tar",
        **{f"x.tar/one/{name}.jpg": "link or device" for name in "cde"},
        "one/0.jpg": "name is in the tar twice",
    }
    with pytest.raises(UserError, match="8 of 28 images are bad"):
        run(ingest(archives(path)), {}, context(tmp_path, attempt=2))


def test_members_that_are_not_used_are_counted(tmp_path):
    inner = tar_bytes([*class_images(0), ("a.heic", b"x"), ("a.XML", b"x"), ("text", b"no image"), ("image", jpeg(50))])
    path = tmp_path / "x.tar"
    path.write_bytes(tar_bytes([("one.tar", inner), ("loose.jpg", jpeg(51)), ("notes.txt", b"x")]))
    metrics = run(ingest(archives(path)), {}, context(tmp_path)).metrics
    assert metrics["images"] == 9
    assert {name: value for name, value in metrics.items() if name.startswith("unused")} == {
        "unused": 5, "unused/heic": 1, "unused/xml": 1, "unused/without a suffix": 1, "unused/txt": 1,
        "unused/image outside of a class": 1,
    }  # fmt: skip


def test_damaged_and_cut_tars_are_named(tmp_path):
    path, data = tmp_path / "x.tar", tar_bytes(class_tars())
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        second = tar.getmember(f"{CLASSES[1]}.tar").offset_data
        last = tar.getmember(f"{CLASSES[2]}.tar").offset_data
    path.write_bytes(data[: last + 700])
    with pytest.raises(UserError, match=r"x\.tar: damaged or cut: unexpected end of data; fetch it again"):
        source(path).listing()
    inner = 512 + (len(jpeg(100)) + 511) // 512 * 512
    for place, where in ((second - 512, r"x\.tar: "), (second + inner, rf"x\.tar, the tar at byte {second}: ")):
        path.write_bytes(data[:place] + b"?" * 512 + data[place + 512 :])
        with pytest.raises(UserError, match=rf"{where}damaged or cut: no header at byte {place}"):
            source(path).listing()


def test_tars_that_stop_between_two_members_are_cut(tmp_path):
    path, data = tmp_path / "x.tar", tar_bytes(class_tars())
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        second, end = tar.getmembers()[1].offset, tar.offset
    for length in (second, second + 100, end):
        path.write_bytes(data[:length])
        with pytest.raises(UserError, match=r"x\.tar: damaged or cut"):
            source(path).listing()


def test_images_that_have_gone_are_missing(tmp_path):
    opened = source(one_tar_per_class(tmp_path))
    references = opened.listing().references
    (tmp_path / f"{CLASSES[0]}.tar").unlink()
    (tmp_path / f"{CLASSES[2]}.tar").write_bytes(b"short")
    found = list(opened.read(references))
    assert [image.reason for image in found[:8] if isinstance(image, Missing)] == [
        "cannot be read: No such file or directory"
    ] * 8
    assert [image.data for image in found[8:16] if isinstance(image, RawImage)] == [d for _, d in class_images(1)]
    assert found[16] == Missing(name=f"{CLASSES[2]}/{CLASSES[2]}_200.JPEG", reason="the tar has become shorter")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json"])
def test_classes_get_their_names_and_keep_their_order(tmp_path, suffix):
    names = {CLASSES[1]: "crane, bird", CLASSES[0]: "tench", CLASSES[2]: "abacus", "n9": "more"}
    file, delimiter = tmp_path / f"names{suffix}", "\t" if suffix == ".tsv" else ","
    with open(file, "w", newline="") as opened:
        if suffix == ".json":
            json.dump(names, opened)
        else:
            csv.writer(opened, delimiter=delimiter).writerows([("synset", "name"), *names.items()])
    (tmp_path / "tars").mkdir()
    config = archives(one_tar_per_class(tmp_path / "tars"), class_map=str(file))
    digest = ingest(config).external_digest()
    meta, found = ingested(tmp_path, ingest(config))
    assert meta.classes == ("tench", "crane, bird", "abacus")
    assert everything(found) == training()
    file.write_text(file.read_text().replace(CLASSES[2], "n8"))
    assert ingest(config).external_digest() != digest
    with pytest.raises(UserError, match=rf"names\{suffix} has no name for n00000033 \(1 of 3 classes\)"):
        run(ingest(config), {}, context(tmp_path, attempt=2))


def test_kaggles_names_are_found_beside_the_tars(ilsvrc):
    synset_labels(ilsvrc)
    (ilsvrc / imagenet.CLASS_NAMES).write_text("n00000022 great white shark, x\nn00000011 tench\nn00000033 cock\n")
    assert source(ilsvrc).listing().classes == ("tench", "great white shark, x", "cock")


def test_maps_of_classes_that_cannot_be_read_are_named(tmp_path):
    tars = one_tar_per_class(tmp_path)
    mistakes = {"a.csv": b"n1\n", "b.json": b'{"0": ["n1", "tench"]}', "c.json": b"{", "d.yaml": b""}
    for name, content in mistakes.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}.*expected"):
            source(tars, class_map=str(tmp_path / name)).listing()
    with pytest.raises(UserError, match=r"none\.csv cannot be read: No such file"):
        source(tars, class_map=str(tmp_path / "none.csv")).digest()


def test_another_number_of_classes_is_told_with_both(tmp_path):
    tars = one_tar_per_class(tmp_path)
    with pytest.raises(UserError, match=r"has 3 classes and expected_classes=21,843; the heads of models.*: 21,843"):
        source(tars, expected_classes=21_843).listing()
    config = ingest(archives(tars, expected_classes=3))
    assert run(config, {}, context(tmp_path)).metrics["classes"] == 3


def test_a_file_of_splits_names_images_by_class_and_member(tmp_path):
    tars = one_tar_per_class(tmp_path)
    splits = tmp_path / "splits.csv"
    splits.write_text("".join(f"{CLASSES[1]}/{name},test\n" for name, _ in class_images(1)[:3]))
    _, found = ingested(tmp_path, ingest(archives(tars), splits_file=str(splits), validation_fraction=0))
    assert sorted(data for data, _ in found["test"]) == sorted(data for _, data in class_images(1)[:3])
    assert len(found["train"]) == 21


def test_the_digest_follows_all_files_that_are_read(tmp_path, ilsvrc):
    synset_labels(ilsvrc)
    digest = source(ilsvrc).digest()
    moved = ilsvrc.rename(tmp_path / "moved")
    assert source(moved).digest() == digest
    for name in (imagenet.TRAIN, imagenet.VALIDATION, imagenet.SYNSET_LABELS):
        (moved / name).touch()
        assert source(moved).digest() != digest
        digest = source(moved).digest()
    (moved / imagenet.CLASS_NAMES).write_text("n1 x\n")
    assert source(moved).digest() != digest


def test_validation_labels_that_do_not_fit_are_told(ilsvrc):
    with pytest.raises(UserError, match=rf"no labels: put one of {imagenet.DEVKIT}, imagenet_2012"):
        source(ilsvrc).digest()
    (ilsvrc / imagenet.KAGGLE).write_text("ImageId,PredictionString\nILSVRC2012_val_00000001,n00000011 1 2 3 4\n")
    with pytest.raises(UserError, match=r"no label for ILSVRC2012_val_00000002\.JPEG and 10 other"):
        source(ilsvrc).listing()
    (ilsvrc / imagenet.SYNSET_LABELS).write_text("n00000011\n" * 11)
    with pytest.raises(UserError, match=r"has 11 labels and ILSVRC2012_img_val\.tar 12 images"):
        source(ilsvrc).listing()
    (ilsvrc / imagenet.SYNSET_LABELS).write_text("n00000011\n" * 11 + "n7\n")
    with pytest.raises(UserError, match=r"has class n7, which ILSVRC2012_img_train\.tar has not"):
        source(ilsvrc).listing()
    for truth, meta, message in (
        ("5\n" * 12, None, "ground_truth.txt has class 5, data/meta.mat does not"),
        ("1\n" * 13, None, "has 13 labels"),
        ("one\n", None, "has class one"),
        (None, meta_mat()[:300], "meta.mat has no synsets"),
        (None, b"no matrix" * 40, "meta.mat has no synsets with ILSVRC2012_ID and WNID"),
    ):
        devkit(ilsvrc, truth, meta)
        with pytest.raises(UserError, match=message):
            source(ilsvrc).listing()
    (ilsvrc / imagenet.DEVKIT).write_bytes(gzip.compress(tar_bytes([("data/meta.mat", meta_mat())])))
    with pytest.raises(UserError, match=r"lacks data/ILSVRC2012_validation_ground_truth\.txt or data/meta\.mat"):
        source(ilsvrc).listing()
    (ilsvrc / imagenet.DEVKIT).write_bytes(b"no gzip")
    with pytest.raises(UserError, match=r"is no \.tar\.gz that can be read"):
        source(ilsvrc).listing()


def test_folders_and_tars_of_other_forms_are_refused(tmp_path, ilsvrc):
    def refused(path, message):
        with pytest.raises(UserError, match=message):
            run(ingest(archives(path)), {}, context(tmp_path))

    (ilsvrc / imagenet.TRAIN).unlink()
    refused(ilsvrc, r"has ILSVRC2012_img_val\.tar alone: put ILSVRC2012_img_train\.tar beside it")
    (ilsvrc / imagenet.TRAIN).write_bytes(tar_bytes(class_images(0)))
    refused(ilsvrc, r"img_train\.tar has no \.tar in it")
    folder = tmp_path / "other"
    refused(folder, r"other: expected a folder with \.tar files")
    folder.mkdir()
    refused(folder, r"other: expected a folder with \.tar files")
    (folder / "winter21_whole.tar.gz").write_bytes(b"")
    for path in (folder, folder / "winter21_whole.tar.gz"):
        refused(path, r"winter21_whole\.tar\.gz: a compressed tar cannot be read at random: unpack it once")
    (folder / "winter21_whole.tar.gz").unlink()
    (folder / "x.tar").write_bytes(tar_bytes([("n1.tar.gz", b"")]))
    refused(folder, r"x\.tar: n1\.tar\.gz is compressed")
    (folder / "x.tar").write_bytes(tar_bytes(class_images(0)))
    refused(folder / "x.tar", r"x\.tar has no \.tar in it: expected one for each class")
    (folder / "x.tar").write_bytes(tar_bytes([("notes.txt", b"x")]))
    refused(folder, r"its tars have no images: expected bmp")
    (folder / "x.tar").write_bytes(tar_bytes(class_tars()))
    (folder / f"{CLASSES[0]}.tar").write_bytes(class_tars()[0][1])
    refused(folder, r"class n00000011 is in n00000011\.tar and in x\.tar")
    (folder / "x.tar").write_bytes(b"no tar" * 200)
    refused(folder, r"x\.tar: damaged or cut")
