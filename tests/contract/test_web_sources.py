"""Ingestion and training from a web server: lists of shards behind a token, tables with addresses of images."""

from __future__ import annotations

from collections import Counter

import pytest

from cluster.errors import UserError
from cluster.storage.web import TOKEN, TOKEN_HOST
from stages.data.config import DataConfig
from stages.data.loader import TrainLoader
from stages.data.manifest import dataset_meta
from stages.data.shards import ShardWriter
from stages.ingest.config import IngestConfig
from stages.ingest.run import run
from tests.contract.servers import FileServer
from tests.unit.stages.ingest.pictures import context, digit, jpeg


@pytest.mark.parametrize("fetch", ["shards", "samples"])
def test_a_list_of_shards_behind_a_token_is_indexed_and_trained_on(tmp_path, monkeypatch, fetch):
    folder = tmp_path / "site" / "tars"
    folder.mkdir(parents=True)
    for shard in range(3):
        with open(folder / f"{shard}.tar", "wb") as file:
            writer = ShardWriter(file)
            for number in range(shard * 20, shard * 20 + 20):
                writer.add(f"{number:04d}", "jpg", jpeg(number), [digit(number)])
            writer.close()
    server = FileServer(tmp_path / "site")
    (folder / "list.txt").write_text("".join(f"{server.url}/tars/{shard}.tar\n" for shard in range(3)))
    monkeypatch.setenv(TOKEN, "secret")
    monkeypatch.setenv(TOKEN_HOST, server.host)
    with server.running():
        source = {"kind": "webdataset", "shards": {"train": f"{server.url}/tars/list.txt"}}
        config = IngestConfig.model_validate({"source": source})
        assert config.external_digest() == config.external_digest()
        place = context(tmp_path)
        output = run(config, {}, place).output
        counts = Counter(map(digit, range(60)))
        assert dataset_meta(output).split("train").class_counts == tuple(counts[label] for label in range(10))
        data = DataConfig(fetch=fetch, cache=str(tmp_path / "cache"), flip=False)
        with TrainLoader(
            place.storage,
            output,
            ("train",),
            data,
            resolution=8,
            seed=0,
            global_batch=60,
            rank=0,
            world_size=1,
            start=0,
            classes=range(10),
        ) as loader:
            assert Counter(next(loader).labels.tolist()) == counts
    assert set(server.tokens()) == {"Bearer secret"}


def test_signed_addresses_of_lists_and_tars_are_read_and_not_told(tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    with open(site / "0.tar", "wb") as file:
        writer = ShardWriter(file)
        writer.add("0", "jpg", jpeg(0), [digit(0)])
        writer.close()
    server = FileServer(site)

    def config(signature, tar="0"):
        (site / "list.txt").write_text(f"{tar}.tar?X-Signature={signature}/b.txt\n")
        source = {"kind": "webdataset", "shards": {"train": f"{server.url}/list.txt?X-Signature={signature}"}}
        return IngestConfig.model_validate({"source": source})

    with server.running():
        digest = config("one").external_digest()
        assert config("two").external_digest() == digest
        assert run(config("one"), {}, context(tmp_path)).metrics["images"] == 1
        with pytest.raises(UserError, match=r"/7\.tar is not there") as told:
            config("secret", "7").external_digest()
    assert "secret" not in str(told.value)


def test_a_table_on_the_web_has_images_by_its_side_and_elsewhere(tmp_path):
    site = tmp_path / "site"
    (site / "images").mkdir(parents=True)
    server = FileServer(site)
    lines = ["image,label"]
    for number in range(30):
        (site / "images" / f"{number}.jpg").write_bytes(jpeg(number))
        lines.append(f"{server.url if number % 2 else '.'}/images/{number}.jpg,{digit(number)}")
    lines.append("images/gone.jpg,1")
    (site / "table.csv").write_text("\n".join(lines) + "\n")
    with server.running():
        source = {"kind": "table", "path": f"{server.url}/table.csv"}
        config = IngestConfig.model_validate({"source": source, "max_bad": 0.05})
        before = config.external_digest()
        result = run(config, {}, context(tmp_path))
        assert (result.metrics["images"], result.metrics["bad/not found"]) == (30, 1)
        (site / "table.csv").write_text("\n".join(lines[:-1]) + "\n")
        assert config.external_digest() != before


def test_a_web_server_has_no_stars(tmp_path):
    server = FileServer(tmp_path)
    config = IngestConfig.model_validate({"source": {"kind": "webdataset", "shards": {"train": f"{server.url}/*.tar"}}})
    with server.running(), pytest.raises(UserError, match="has no list of its files: name each one"):
        config.external_digest()
