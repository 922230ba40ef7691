import io
import json

import numpy as np
import pytest
from PIL import Image

from stages.data.index import Index, make_index, read_index
from stages.data.shards import ShardWriter, read_samples

EXTENSIONS = ["png", "jpg", "webp"]


def png(shade):
    buffer = io.BytesIO()
    Image.new("L", (3, 2), shade).save(buffer, "PNG")
    return buffer.getvalue()


def samples():
    """Key, extension, image and label."""
    return [(f"{i:09d}", EXTENSIONS[i % 3], png(i) + bytes(i * 200), i % 4) for i in range(20)]


def write(path, multi_label=False):
    with open(path, "wb") as file:
        tar = ShardWriter(file)
        places = [tar.add(k, e, data, [label], multi_label=multi_label) for k, e, data, label in samples()]
        tar.close()
    return make_index(places, [[label] for *_, label in samples()], multi_label=multi_label)


def test_webdataset_reads_what_was_written(tmp_path):
    write(tmp_path / "a.tar")
    found = [
        (s["__key__"], next((e, s[e]) for e in EXTENSIONS if e in s), s["cls"])
        for s in read_samples(tmp_path / "a.tar")
    ]
    assert found == [(key, (extension, data), str(label).encode()) for key, extension, data, label in samples()]


def test_samples_with_several_labels_have_them_as_json(tmp_path):
    write(tmp_path / "a.tar", multi_label=True)
    found = [json.loads(sample["json"]) for sample in read_samples(tmp_path / "a.tar")]
    assert found == [{"labels": [label]} for *_, label in samples()]


def test_the_layout_is_that_of_webdatasets_own_writer(tmp_path):
    from webdataset.writer import TarWriter

    write(tmp_path / "ours.tar")
    with open(tmp_path / "theirs.tar", "wb") as file, TarWriter(file, encoder=False, mtime=0, user="", group="") as tar:
        for key, extension, data, label in samples():
            tar.write({"__key__": key, extension: data, "cls": str(label).encode()})
    assert (tmp_path / "ours.tar").read_bytes() == (tmp_path / "theirs.tar").read_bytes()


def test_the_index_points_at_each_image(tmp_path):
    index = write(tmp_path / "a.tar")
    content = (tmp_path / "a.tar").read_bytes()
    for number, (_, _, data, label) in enumerate(samples()):
        start = int(index.offsets[number])
        assert content[start : start + int(index.lengths[number])] == data
        assert index.labels_of(number) == [label]
    assert index.class_counts() == {0: 5, 1: 5, 2: 5, 3: 5}


def same(one: Index, other: Index) -> bool:
    columns = ("offsets", "lengths", "labels", "starts")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in columns if name != "starts") and (
        np.array_equal(one.starts, other.starts) if one.starts is not None else other.starts is None
    )


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_index_survives_storage_and_nothing_else_passes_for_one(multi_label):
    labels = [[3], [1, 2], []] if multi_label else [[3], [1], [2]]
    index = make_index([(512, 10), (2048, 7), (1 << 40, 1)], labels, multi_label=multi_label)
    data = index.to_bytes()
    assert same(read_index(data), index)
    assert [read_index(data).labels_of(number) for number in range(3)] == labels
    for damaged in (b"", data[:-1], data + b"0", data[1:], b"x" * 100):
        with pytest.raises(ValueError, match="no shard index"):
            read_index(damaged)


def test_a_sample_takes_16_bytes_of_the_index():
    one, two = (make_index([(0, 1)] * n, [[0]] * n, multi_label=False).to_bytes() for n in (1000, 3000))
    assert (len(two) - len(one)) / 2000 == 16


def test_one_label_each_means_one_label_each():
    with pytest.raises(ValueError, match="2 samples have 3 labels"):
        make_index([(0, 1), (1, 1)], [[1], [2, 3]], multi_label=False)


def test_a_key_that_webdataset_would_split_is_refused():
    with pytest.raises(ValueError, match="dot"):
        ShardWriter(io.BytesIO()).add("a.b", "png", b"", [0])
