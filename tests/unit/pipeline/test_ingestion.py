import tarfile

import pytest
from PIL import Image

from cluster.errors import UserError
from cluster.storage import open_storage
from pipeline.ingestion import ingest_workflow, recognise
from pipeline.plan import plan
from pipeline.runner import Runner
from stages.ingest.addresses import shard_addresses
from stages.ingest.config import IngestConfig, WebDatasetSource
from tests.unit.pipeline.test_runner import Silent


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["cat/1.jpg"], "folder"),
        (["train/cat/1.jpg", "val/cat/2.jpg"], "folder"),
        (["train-images-idx3-ubyte.gz"], "idx"),
        (["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"], "archives"),
        (["winter21_whole/n01440764.tar"], "archives"),
        (["my.targets/cat/1.jpg", "tarts/2.jpg"], "folder"),
    ],
)
def test_a_folder_is_what_it_holds(tmp_path, names, kind):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert recognise(str(tmp_path)) == {"kind": kind, "path": str(tmp_path)}


def tar(path, names):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as opened:
        for name in names:
            opened.addfile(tarfile.TarInfo(name))
    return str(path)


CLASS_TAR = [f"n01_{number}.JPEG" for number in range(5)]
SAMPLES = [f"{number:05d}.{part}" for number in range(5) for part in ("jpg", "cls")]


def test_tars_are_what_their_members_show(tmp_path):
    for name in ("n01440764", "n01443537"):
        tar(tmp_path / "classes" / f"{name}.tar", [*CLASS_TAR, "README.txt"])
        tar(tmp_path / "shards" / f"{name}.tar", SAMPLES)
        tar(tmp_path / "unclear" / f"{name}.tar", ["a.npy", "b.npy"])
        tar(tmp_path / "strange" / f"{name}.tar", ["a.jpg", "b.txt"])
    tar(tmp_path / "both" / "a.tar", CLASS_TAR)
    tar(tmp_path / "both" / "b.tar", SAMPLES)
    assert recognise(f"{tmp_path}/classes") == {"kind": "archives", "path": f"{tmp_path}/classes"}
    assert recognise(f"{tmp_path}/shards") == {"kind": "webdataset", "shards": {"train": f"{tmp_path}/shards"}}
    for name in ("unclear", "strange", "both"):
        with pytest.raises(UserError, match=rf"{name}/.*say which with -o ingest\.source\.kind=archives"):
            recognise(f"{tmp_path}/{name}")


def test_one_tar_is_looked_into(tmp_path):
    whole = tar(tmp_path / "fall11_whole.tar", ["n01440764.tar", "n01443537.tar"])
    assert recognise(whole) == {"kind": "archives", "path": whole}
    samples = tar(tmp_path / "000.tar", SAMPLES)
    assert recognise(samples) == {"kind": "webdataset", "shards": {"train": samples}}


def test_shards_that_are_named_after_splits_go_into_them(tmp_path):
    for name in ("train-000000", "train-000001", "val_0", "test"):
        tar(tmp_path / f"{name}.tar", SAMPLES)
    source = recognise(str(tmp_path))
    assert source["kind"] == "webdataset"
    found = shard_addresses(WebDatasetSource.model_validate(source))
    assert {split: [tar.rpartition("/")[2] for tar in tars] for split, tars in found.items()} == {
        "test": ["test.tar"], "train": ["train-000000.tar", "train-000001.tar"], "validation": ["val_0.tar"],
    }  # fmt: skip
    tar(tmp_path / "more.tar", SAMPLES)
    with pytest.raises(UserError, match=r"more\.tar, which is not: name the tars of each split"):
        recognise(str(tmp_path))


def test_local_paths_come_first_and_suffixes_may_be_large(tmp_path):
    (tmp_path / "photos.CSV").touch()
    (tmp_path / "list.txt").touch()
    (tmp_path / "my.targets" / "cat").mkdir(parents=True)
    assert recognise(f"{tmp_path}/photos.CSV")["kind"] == "table"
    assert recognise(f"{tmp_path}/list.txt") == {"kind": "webdataset", "shards": {"train": f"{tmp_path}/list.txt"}}
    assert recognise(f"{tmp_path}/my.targets") == {"kind": "folder", "path": f"{tmp_path}/my.targets"}
    assert recognise(f"file://{tmp_path}/my.targets") == {"kind": "folder", "path": f"{tmp_path}/my.targets"}
    assert recognise("https://host/labels.CSV?token=a.tar")["kind"] == "table"


@pytest.mark.parametrize(("kind", "field"), [("archives", "path"), ("webdataset", "shards"), ("folder", "path")])
def test_a_kind_that_is_said_is_not_guessed(tmp_path, kind, field):
    whole = tar(tmp_path / "whole.tar", SAMPLES)
    for prefix in ("ingest", "stages.ingest"):
        workflow = ingest_workflow(whole, None, [f"{prefix}.source.kind={kind}"])
        stage = workflow.stages["ingest"]
        assert isinstance(stage, IngestConfig)
        assert stage.source.kind == kind
        assert getattr(stage.source, field) == ({"train": whole} if field == "shards" else whole)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("place", ["s3://bucket/", "/data/", "file:///data/"])
def test_tables_are_known_by_their_names(place, suffix):
    assert recognise(f"{place}photos{suffix}") == {"kind": "table", "path": f"{place}photos{suffix}"}


@pytest.mark.parametrize(
    "tars",
    [
        "s3://bucket/train-{000..099}.tar",
        "https://host/a/0.tar",
        "https://h/0.tar?sign=x.csv",
        "/data/*.tar",
        "s3://b/p",
    ],
)
def test_tars_are_indexed_in_place(tars):
    assert recognise(tars) == {"kind": "webdataset", "shards": {"train": tars}}


def test_a_path_that_is_nothing_is_told_what_could_be(tmp_path):
    with pytest.raises(UserError, match=r"nothing: expected a folder of images for each class, .* or WebDataset tars"):
        recognise(str(tmp_path / "nothing"))


def test_the_workflow_is_named_after_the_source_and_takes_options(tmp_path):
    (tmp_path / "my photos" / "cat").mkdir(parents=True)
    options = ["ingest.longest_side=256", "ingest.max_bad=0.01"]
    workflow = ingest_workflow(f"{tmp_path}/my photos/", "s3://bucket/photos", options)
    assert workflow.name == "ingest-my-photos"
    stage = workflow.stages["ingest"]
    assert isinstance(stage, IngestConfig)
    assert (stage.name, stage.destination) == ("my-photos", "s3://bucket/photos")
    assert (stage.longest_side, stage.max_bad) == (256, 0.01)


def test_a_second_ingestion_is_reused_only_with_its_tars_at_the_place_asked_for(tmp_path):
    for number in range(20):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
    storage = open_storage(f"file://{tmp_path}/results")

    def ingest(number, place):
        workflow = ingest_workflow(f"{tmp_path}/photos", f"file://{tmp_path}/{place}")
        [planned] = plan(storage, workflow)
        runner = Runner(storage, f"i-{number}", workflow, owner="test", ray=False, tracker=Silent())
        state = runner.run()
        assert (planned.action == "reuse") == (state == "done" and runner.finished["ingest"].reused)
        return runner.failed["ingest"] if state == "failed" else planned.action

    def tars(place):
        return sorted(path.name for path in (tmp_path / place).glob("*.tar"))

    assert [ingest(1, "one"), ingest(2, "one")] == ["run", "reuse"]
    assert ingest(3, "two") == "run"
    assert tars("two") == tars("one") != []
    (tmp_path / "two" / "train-000000.tar").unlink()
    assert [ingest(4, "two"), ingest(5, "two")] == ["run", "reuse"]
    assert tars("two") == tars("one")
    Image.new("RGB", (4, 4), "red").save(tmp_path / "photos" / "a" / "another.png")
    assert "give a destination of its own" in ingest(6, "two")
    assert ingest(7, "three") == "run"
