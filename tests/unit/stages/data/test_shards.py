import io
import tarfile

import numpy as np
import pytest
import webdataset
from PIL import Image

from cluster.errors import UserError
from stages.data.shards import Sample, index_bytes, index_shard, read_index, write_shard


def png(shade):
    buffer = io.BytesIO()
    Image.new("L", (3, 2), shade).save(buffer, "PNG")
    return buffer.getvalue()


def samples():
    extensions = ["png", "jpg", "webp"]
    return [
        Sample(key=f"{i:09d}", extension=extensions[i % 3], data=png(i) + bytes(i * 200), label=i % 4)
        for i in range(20)
    ]


def test_webdataset_reads_what_was_written(tmp_path):
    write_shard(samples(), tmp_path / "a.tar")
    dataset = webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False)
    found = [(s["__key__"], next(s[e] for e in ("png", "jpg", "webp") if e in s), s["cls"]) for s in dataset]
    assert found == [(s.key, s.data, str(s.label).encode()) for s in samples()]


def test_the_index_points_at_each_image(tmp_path):
    path = tmp_path / "a.tar"
    index, class_counts = write_shard(samples(), path)
    content = path.read_bytes()
    for entry, sample in zip(index, samples(), strict=True):
        assert content[entry["offset"] : entry["offset"] + entry["length"]] == sample.data
        assert entry["label"] == sample.label
    assert class_counts == {0: 5, 1: 5, 2: 5, 3: 5}
    assert index.itemsize == 16


def test_equal_samples_give_equal_bytes(tmp_path):
    write_shard(samples(), tmp_path / "a.tar")
    write_shard(iter(samples()), tmp_path / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_the_index_survives_the_disk_and_nothing_else_passes_for_one(tmp_path):
    index, _ = write_shard(samples(), tmp_path / "a.tar")
    (tmp_path / "a.npy").write_bytes(index_bytes(index))
    assert np.array_equal(read_index(tmp_path / "a.npy"), index)
    np.save(tmp_path / "b.npy", np.zeros(3))
    with pytest.raises(ValueError, match="no shard index"):
        read_index(tmp_path / "b.npy")
    np.save(tmp_path / "c.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="no shard index"):
        read_index(tmp_path / "c.npy")
    for damaged in (b"", index_bytes(index)[:-1], index_bytes(index) + b"0", index_bytes(index)[1:]):
        with pytest.raises(ValueError, match="no shard index"):
            read_index(io.BytesIO(damaged))


def test_a_tar_from_elsewhere_is_indexed_in_place(tmp_path):
    """Other order of members, a folder, a further member, a capital extension."""
    members = {"x/1.cls": b"7", "x/1.json": b"{}", "x/1.JPEG": b"jpeg", "x/2.png": b"png2", "x/2.cls": b"3"}
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    index = index_shard(tmp_path / "a.tar")
    content = (tmp_path / "a.tar").read_bytes()
    assert [content[e["offset"] : e["offset"] + e["length"]] for e in index] == [b"jpeg", b"png2"]
    assert index["label"].tolist() == [7, 3]


def test_a_sample_without_a_label_is_named(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("x/9.png"), io.BytesIO())
    with pytest.raises(UserError, match=r"x/9 lacks a cls"):
        index_shard(tmp_path / "a.tar")


def test_a_key_that_webdataset_would_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match="dot"):
        write_shard([Sample(key="a.b", extension="png", data=b"", label=0)], tmp_path / "a.tar")
