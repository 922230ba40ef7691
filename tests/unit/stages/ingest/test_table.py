"""Tables of images and labels: CSV, TSV, JSON lines and Parquet."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from cluster.errors import UserError
from stages.ingest.config import TableSource
from stages.ingest.run import run
from stages.ingest.sources import open_source, parquet
from stages.ingest.sources.addressed import read_addresses, resolve
from stages.ingest.sources.base import Missing, RawImage
from stages.ingest.sources.labels import MOST_CLASSES
from tests.unit.stages.ingest.pictures import NAMES, context, digit, ingest, ingested, jpeg

COUNT = 40


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "data" / "images"
    folder.mkdir(parents=True)
    for number in range(COUNT):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    return folder


def write_csv(path, rows, delimiter=","):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_table(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    else:
        write_csv(path, rows, "\t" if path.suffix == ".tsv" else ",")
    return path


def table(path, **fields):
    return {"kind": "table", "path": str(path), **fields}


def listing(path, **fields):
    return open_source(TableSource(path=str(path), **fields)).listing()


def expected(label):
    return sorted((jpeg(number), label(number)) for number in range(COUNT))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_addresses_and_integers_of_every_kind_of_table(tmp_path, images, suffix):
    """Relative addresses are meant of the table's folder; absolute ones have or lack a scheme."""
    forms = [lambda name: f"images/{name}", lambda name: f"{images}/{name}", lambda name: f"file://{images}/{name}"]
    rows = [
        {"about": 'a "digit", a\nfigure', "label": digit(n), "image": forms[n % 3](f"{n}.jpg")} for n in range(COUNT)
    ]
    path = write_table(images.parent / f"table{suffix}", rows)
    meta, found = ingested(tmp_path, ingest(table(path)))
    assert meta.classes == tuple("0123456789")
    assert sorted(sample for split in found.values() for sample in split) == expected(digit)
    assert set(meta.splits) == {"train", "validation", "test"}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_names_become_sorted_classes_and_the_splits_are_the_tables(tmp_path, images, suffix):
    written = ["train", "val", "valid", "validation", "test"]
    rows = [{"file": f"{n}.jpg", "class": NAMES[digit(n)], "part": written[n % 5]} for n in range(COUNT)]
    path = write_table(tmp_path / f"table{suffix}", rows)
    fields = {"base": str(images), "image": "file", "label": "class", "split": "part"}
    meta, found = ingested(tmp_path, ingest(table(path, **fields)))
    assert meta.classes == tuple(sorted(NAMES))
    assert sorted(sample for split in found.values() for sample in split) == expected(
        lambda n: sorted(NAMES).index(NAMES[digit(n)])
    )
    numbers = {"train": range(0, COUNT, 5), "test": range(4, COUNT, 5)}
    for split, own in numbers.items():
        assert sorted(data for data, _ in found[split]) == sorted(jpeg(n) for n in own)
    assert len(found["validation"]) == 24


def test_a_column_called_split_counts_unless_it_is_switched_off(tmp_path, images):
    rows = [{"image": f"{n}.jpg", "label": 0, "split": "test" if n else "train"} for n in range(4)]
    path = write_table(images / "table.csv", rows)
    assert listing(path).splits.tolist() == [0, 2, 2, 2]
    assert listing(path, split=None).splits.tolist() == [0, 0, 0, 0]


def labels_of(number):
    """None to two labels for an image: the digit where it is odd, and whether it is large."""
    return [*([NAMES[digit(number)]] if digit(number) % 2 else []), *(["large"] if digit(number) > 5 else [])]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_several_labels_in_a_list_or_in_one_text(tmp_path, images, suffix):
    def cell(own):
        return " | ".join(own) if suffix == ".csv" else own

    rows = [{"image": f"images/{n}.jpg", "label": cell(labels_of(n))} for n in range(COUNT)]
    path = write_table(images.parent / f"table{suffix}", rows)
    fields = {"label_separator": "|"} if suffix == ".csv" else {}
    meta, found = ingested(tmp_path, ingest(table(path, **fields)))
    assert meta.multi_label
    assert meta.classes == ("five", "large", "nine", "one", "seven", "three")
    stored = [(data, label) for split in found.values() for data, label in split]
    assert sorted(stored) == expected(lambda n: [meta.classes.index(name) for name in labels_of(n)])


def test_several_integers_and_no_label_twice(tmp_path):
    rows = [{"image": "a.jpg", "label": [3, 1, 3]}, {"image": "b.jpg", "label": [0]}]
    found = listing(write_table(tmp_path / "table.jsonl", rows))
    assert found.classes == ("0", "1", "2", "3")
    assert [found.labels_of(0), found.labels_of(1)] == [(3, 1), (0,)]


def test_numbers_in_text_are_names_unless_all_are_written_as_integers(tmp_path):
    rows = [{"image": f"{n}.jpg", "label": label} for n, label in enumerate(("007", "1", "12"))]
    assert listing(write_table(tmp_path / "table.csv", rows)).classes == ("007", "1", "12")
    assert len(listing(write_table(tmp_path / "table.csv", rows[1:])).classes) == 13


def write_parquet(path, values, kind, labels=None, rows_per_group=6):
    columns = {"label": labels or [digit(n) for n in range(len(values))], "image": pa.array(values, kind)}
    pq.write_table(pa.table(columns), path, row_group_size=rows_per_group)
    return path


HUGGING_FACE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), HUGGING_FACE])
def test_bytes_in_parquet_as_a_column_or_as_hugging_face_writes_them(tmp_path, kind):
    values = [jpeg(n) for n in range(COUNT)]
    if kind == HUGGING_FACE:
        values = [{"bytes": data, "path": f"{n}.jpg"} for n, data in enumerate(values)]
    path = write_parquet(tmp_path / "table.parquet", values, kind)
    meta, found = ingested(tmp_path, ingest(table(path)))
    assert meta.splits["train"].shards > 1
    assert sorted(sample for split in found.values() for sample in split) == expected(digit)


def test_images_come_in_any_order_and_each_row_group_is_read_once(tmp_path, monkeypatch):
    groups = []

    class Counted(pq.ParquetFile):
        def iter_batches(self, *args, **options):
            groups.extend(options.get("row_groups") or [])
            return super().iter_batches(*args, **options)

    monkeypatch.setattr(parquet.pq, "ParquetFile", Counted)
    monkeypatch.setattr(parquet, "_IN_MEMORY_BYTES", 3000)
    monkeypatch.setattr(parquet, "_IMAGES", 4)
    path = write_parquet(tmp_path / "table.parquet", [jpeg(n) for n in range(COUNT)], pa.binary(), rows_per_group=10)
    source = open_source(TableSource(path=f"file://{path}"))
    order = [n for n in np.random.default_rng(0).permutation(COUNT).tolist() if not 10 <= n < 20] + [3, 3]
    images = list(source.read(order))
    assert [image.data for image in images if isinstance(image, RawImage)] == [jpeg(n) for n in order]
    assert images[0].name == f"row-{order[0]}"
    assert groups == [0, 2, 3]


def test_a_listing_does_not_read_the_images(tmp_path):
    """The bytes of the image column are destroyed, and the listing is what it was."""
    path = write_parquet(tmp_path / "table.parquet", [jpeg(n) for n in range(COUNT)], pa.binary(), rows_per_group=30)
    before, data = listing(path), bytearray(path.read_bytes())
    metadata = pq.ParquetFile(path).metadata
    for number in range(metadata.num_row_groups):
        chunk = metadata.row_group(number).column(1)
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(data)
    assert list(listing(path).references) == list(before.references) == list(range(COUNT))
    assert listing(path).labels.tolist() == [digit(n) for n in range(COUNT)]
    assert 0.8 < before.sizes.sum() / sum(len(jpeg(n)) for n in range(COUNT)) < 1.25
    with pytest.raises((OSError, pa.ArrowInvalid)):
        list(open_source(TableSource(path=str(path))).read([0]))


def test_images_that_are_missing_are_told_and_left_out(tmp_path, images):
    rows = [{"image": f"images/{n}.jpg", "label": digit(n)} for n in range(30)]
    rows += [{"image": "images/none.jpg", "label": 0}, {"image": "images", "label": 0}, {"image": "a\0b", "label": 0}]
    rows += [{"image": None, "label": 0}, {"image": "images/30.jpg", "label": None}]
    path = write_table(images.parent / "table.jsonl", rows)
    place = context(tmp_path)
    result = run(ingest(table(path), max_bad=0.2, validation_fraction=0, test_fraction=0), {}, place)
    assert result.metrics["images"] == 30
    told = [json.loads(line) for line in place.storage.read(f"{place.prefix}/bad.jsonl").splitlines()]
    assert {line["image"]: line["reason"].partition(":")[0] for line in told} == {
        "images/none.jpg": "not found",
        "images": "cannot be read",
        "a\0b": "no address",
        "row-33": "no image",
        "images/30.jpg": "no label",
    }
    with pytest.raises(UserError, match="5 of 35 images are bad"):
        run(ingest(table(path), validation_fraction=0, test_fraction=0), {}, context(tmp_path, attempt=2))


def test_rows_without_bytes_are_missing(tmp_path):
    values = [{"bytes": jpeg(0), "path": None}, {"bytes": None, "path": "x.jpg"}, None]
    path = write_parquet(tmp_path / "table.parquet", values, HUGGING_FACE)
    found = list(open_source(TableSource(path=str(path))).read([2, 0, 1]))
    assert isinstance(found[1], RawImage)
    assert [image.reason for image in found if isinstance(image, Missing)] == ["no bytes in the table"] * 2


def test_relative_addresses_follow_their_base():
    assert resolve("../b/c.jpg", "/data/a") == "/data/b/c.jpg"
    assert resolve("./c.jpg", "file:///data/a/") == "file:///data/a/c.jpg"
    assert resolve("x/../c.jpg", "s3://bucket/a/b") == "s3://bucket/a/b/c.jpg"
    assert resolve("../../../c.jpg", "s3://bucket/a") == "s3://bucket/c.jpg"
    assert resolve("c.jpg", "s3://bucket") == "s3://bucket/c.jpg"
    assert resolve("/other/c.jpg", "s3://bucket") == "/other/c.jpg"


def test_the_digest_follows_the_table_and_what_its_addresses_mean(tmp_path, images):
    rows = [{"image": f"{n}.jpg", "label": digit(n)} for n in range(5)]
    path = write_table(images / "table.csv", rows)
    digest = ingest(table(path)).external_digest()
    assert ingest(table(f"file://{path}", base=f"file://{images}/")).external_digest() == digest
    assert ingest(table(path, base="/elsewhere")).external_digest() != digest
    path.touch()
    assert ingest(table(path)).external_digest() != digest
    embedded = write_parquet(tmp_path / "table.parquet", [jpeg(0)], pa.binary())
    digest = ingest(table(embedded)).external_digest()
    moved = embedded.rename(images / "table.parquet")
    assert ingest(table(moved)).external_digest() == digest


A, B = {"image": "a.jpg", "label": 1}, {"image": "b.jpg", "label": 2}
MISTAKES = [
    ("t.csv", [A], {"image": "picture"}, r"no column image=picture: it has image, label"),
    ("t.jsonl", [A], {"label": "class"}, r"no column label=class: it has image, label"),
    ("t.parquet", [A], {"split": "part"}, r"no column split=part: it has image, label"),
    ("t.csv", [{**A, "split": "dev"}], {}, r"row 0: split is 'dev': expected one of train, validation, test, val"),
    ("t.jsonl", [A, {**B, "split": "train"}, B], {"split": None, "label": "x"}, "no column label=x"),
    ("t.csv", [A, {**B, "label": -1}], {}, r"label -1: expected integers from 0"),
    ("t.parquet", [A, {**B, "label": -1}], {}, r"label -1: expected integers from 0"),
    ("t.jsonl", [A, {**B, "label": MOST_CLASSES}], {}, r"label 1000000: expected integers"),
    ("t.jsonl", [A, {**B, "label": "cat"}], {}, r"labels 'cat' and 1: expected all names or integers"),
    ("t.jsonl", [A, {**B, "label": 1.5}], {}, r"row 1: label 1.5: expected an integer"),
    ("t.jsonl", [A, {**B, "label": True}], {}, r"row 1: label True: expected an integer"),
    ("t.jsonl", [A, {**B, "label": [2]}], {}, r"row 1: label \[2\]: expected a list of labels in every row"),
    ("t.jsonl", [{**A, "label": [[1]]}], {}, r"row 0: label \[1\]: expected an integer"),
    ("t.jsonl", [{**A, "label": []}], {}, r"has no labels"),
    ("t.jsonl", [A], {"label_separator": "|"}, r"label 1 and label_separator='\|': expected texts"),
    ("t.jsonl", [{**A, "image": 3}], {}, r"row 0: image 3: expected an address"),
    ("t.parquet", [{**A, "image": 3}], {}, r"column image is int64: expected addresses, bytes, or a struct"),
    ("t.csv", [{**A, "image": "ftp://example.com/a.jpg"}], {}, r"'ftp://example.com/a.jpg': expected a path"),
    ("t.csv", [{**A, "label": ""}], {}, r"no row with an image and a label"),
]


@pytest.mark.parametrize(("name", "rows", "fields", "message"), MISTAKES)
def test_mistakes_are_told_with_the_value_and_what_was_expected(tmp_path, name, rows, fields, message):
    path = write_table(tmp_path / name, rows)
    with pytest.raises(UserError, match=message):
        run(ingest(table(path, **fields)), {}, context(tmp_path))


UNREADABLE = [
    ("t.csv", b"", "is empty: expected columns image and label"),
    ("t.jsonl", b"\n", "is empty: expected columns image and label"),
    ("t.csv", b"image,label\n", "no row with an image and a label"),
    ("t.csv", b"image,label\na.jpg,1\nb,c.jpg,2\n", "line 3: 3 values in 2 columns"),
    ("t.csv", b"image,label\n\xff,1\n", "cannot be read as text in UTF-8"),
    ("t.jsonl", b'{"image": "a.jpg", "label": 1}\n{\n', "line 2: no JSON"),
    ("t.jsonl", b"[1]\n", "line 1: '\\[1\\]': expected an object"),
    ("t.parquet", b"image,label\na.jpg,1\n", "is no Parquet file"),
]


@pytest.mark.parametrize(("name", "data", "message"), UNREADABLE)
def test_tables_that_cannot_be_read_are_named(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        run(ingest(table(tmp_path / name)), {}, context(tmp_path))


def test_a_table_that_is_not_there_or_of_another_kind_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.csv cannot be read: No such file"):
        ingest(table(tmp_path / "none.csv")).external_digest()
    with pytest.raises(UserError, match=r"none\.csv is not there"):
        listing(tmp_path / "none.csv")
    with pytest.raises(ValidationError, match=r"table\.xlsx: expected a table that ends in one of \.csv, \.tsv"):
        TableSource(path="table.xlsx")


def test_a_file_of_splits_goes_before_the_tables(tmp_path, images):
    rows = [{"image": f"images/{n}.jpg", "label": 0, "split": "train"} for n in range(COUNT)]
    path = write_table(images.parent / "table.csv", rows)
    splits = tmp_path / "splits.csv"
    lines = [f"images/{n}.jpg,{'val' if n < 5 else 'test'}" for n in range(12)]
    for header in ([], ["name,split"]):
        splits.write_text("\n".join([*header, *lines]))
        _, found = ingested(tmp_path / f"{len(header)}", ingest(table(path), splits_file=str(splits)))
        assert {split: len(own) for split, own in found.items()} == {"train": 28, "validation": 5, "test": 7}
        assert {data for data, _ in found["test"]} == {jpeg(n) for n in range(5, 12)}


def test_a_file_of_splits_enters_the_identity_by_its_content(tmp_path):
    plain, splits = ingest({"kind": "digits"}), tmp_path / "splits.csv"
    splits.write_text("12,test\n")
    config = ingest({"kind": "digits"}, splits_file=str(splits))
    digest = config.external_digest()
    assert digest != plain.external_digest()
    splits.touch()
    assert config.external_digest() == digest
    splits.write_text("12,train\n")
    assert config.external_digest() != digest


SPLITS_MISTAKES = [
    ("12,test\n1797,train\nx,train\n", r"no image '1797' \(2 such names\): expected names such as '0'"),
    ("name,split\n12,dev\n", r"line 2: '12,dev': expected a name and one of train, validation, test, val, valid"),
    ("12\n", r"line 1: '12': expected a name and one of"),
    ("12,test\n12,train\n", r"line 2: '12' is named twice"),
]


@pytest.mark.parametrize(("content", "message"), SPLITS_MISTAKES)
def test_mistakes_in_a_file_of_splits_are_named(tmp_path, content, message):
    splits = tmp_path / "splits.csv"
    splits.write_text(content)
    with pytest.raises(UserError, match=message):
        run(ingest({"kind": "digits"}, splits_file=str(splits)), {}, context(tmp_path))
    splits.unlink()
    with pytest.raises(UserError, match="cannot be read: No such file"):
        ingest({"kind": "digits"}, splits_file=str(splits)).external_digest()
    with pytest.raises(ValidationError, match="splits_file: tars that are indexed in place"):
        ingest({"kind": "webdataset", "shards": {"train": "a.tar"}}, splits_file=str(splits), samples_per_shard=None)


def test_a_class_map_names_the_tables_labels(tmp_path, images):
    rows = [{"image": f"images/{number}.jpg", "label": digit(number)} for number in range(COUNT)]
    path = write_table(images.parent / "t.csv", rows)
    (tmp_path / "names.csv").write_text("".join(f"{number},{name}\n" for number, name in enumerate(NAMES)))
    mapped = ingest(table(path, class_map=str(tmp_path / "names.csv")))
    assert mapped.external_digest() != ingest(table(path)).external_digest()
    meta, found = ingested(tmp_path, mapped)
    assert meta.classes == NAMES
    assert sorted(sample for split in found.values() for sample in split) == expected(digit)


def test_an_image_that_is_listed_twice_is_used_once_and_counted(tmp_path, images):
    rows = [{"image": f"images/{n}.jpg", "label": NAMES[digit(n)]} for n in range(COUNT)]
    again = [f"{images}/0.jpg", f"file://{images}/1.jpg", "images/../images/2.jpg", "images/3.jpg"]
    rows += [{"image": address, "label": "zero"} for address in again]
    path = write_table(tmp_path / "data" / "t.csv", rows)
    place = context(tmp_path)
    result = run(ingest({"kind": "table", "path": str(path)}, max_bad=0.2), {}, place)
    assert (result.metrics["images"], result.metrics["bad/listed twice"]) == (COUNT, 4)
    told = [json.loads(line) for line in place.storage.read(f"{place.prefix}/bad.jsonl").splitlines()]
    assert [line["image"] for line in told] == again
    assert told[0]["reason"] == f"listed twice: again in row {COUNT}; several labels go into one row"


def test_an_answer_that_is_no_image_is_said_in_the_servers_words(monkeypatch):
    def refuse(name, address):
        raise OSError(f"{address}: HTTP 400 Bad Request")

    monkeypatch.setattr("stages.ingest.sources.addressed._read_stored", refuse)
    [missing] = read_addresses(["https://h/a.jpg"], "/data")
    assert missing == Missing(name="https://h/a.jpg", reason="cannot be read: https://h/a.jpg: HTTP 400 Bad Request")
