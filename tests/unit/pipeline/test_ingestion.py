import pytest
from PIL import Image

from cluster.errors import UserError
from cluster.storage import open_storage
from pipeline.ingestion import ingest_workflow, recognise
from pipeline.plan import plan
from pipeline.runner import Runner
from stages.ingest.config import IngestConfig
from tests.unit.pipeline.test_runner import Silent


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["cat/1.jpg"], "folder"),
        (["train/cat/1.jpg", "val/cat/2.jpg"], "folder"),
        (["train-images-idx3-ubyte.gz"], "idx"),
        (["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"], "archives"),
        (["n01440764.tar", "n01443537.tar"], "archives"),
    ],
)
def test_a_folder_is_what_it_holds(tmp_path, names, kind):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert recognise(str(tmp_path)) == {"kind": kind, "path": str(tmp_path)}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("place", ["s3://bucket/", "/data/", "file:///data/"])
def test_tables_are_known_by_their_names(place, suffix):
    assert recognise(f"{place}photos{suffix}") == {"kind": "table", "path": f"{place}photos{suffix}"}


@pytest.mark.parametrize(
    "tars", ["s3://bucket/train-{000..099}.tar", "https://host/a/0.tar", "/data/*.tar", "s3://b/p"]
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
